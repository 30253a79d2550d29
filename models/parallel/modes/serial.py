"""serial: no tensor parallelism, nothing is sharded."""

from models.parallel.mode import ActivationSharding, EmbeddingSharding, LinearSharding, Mode

MODE = Mode(
    name="serial",
    size_rule="1",
    axes=lambda size, depth: {} if size == 1 else None,
    outer=ActivationSharding(),
    inner=ActivationSharding(),
    up=LinearSharding(),
    down=LinearSharding(),
    lookup=EmbeddingSharding(),
    colossal_groups={},
)
