"""No tensor parallelism: nothing is cut."""

from models.parallel.mode import Activation, Lookup, Mode, Product

MODE = Mode(
    name="serial",
    rule="1",
    axes=lambda size, depth: {} if size == 1 else None,
    outer=Activation(),
    inner=Activation(),
    up=Product(),
    down=Product(),
    lookup=Lookup(),
    colossal={},
    whole_samples=False,
)
