"""1d: Megatron's columns and rows (Shoeybi et al. 2019) with sequence parallelism
(Korthikanti et al. 2022)."""

from models.parallel.mode import Activation, Gather, Lookup, Mode, Product

MODE = Mode(
    name="1d",
    rule="at least 1",
    axes=lambda size, depth: {"t": size} if size >= 1 else None,
    outer=Activation(tokens=("t",)),
    inner=Activation(hidden=("t",)),
    up=Product(weight_out=("t",), gather_x=Gather(axis="t", on="T")),
    down=Product(weight_in=("t",), scatter_y="t"),
    lookup=Lookup(scatter_y="t"),
    colossal={"t": "PARALLEL_1D"},
    whole_samples=False,
)
