"""sequence: each rank has a part of the tokens and all weights (Li et al. 2021, "Sequence
Parallelism: Long Sequence Training from System Perspective")."""

from models.parallel.mode import ActivationSharding, EmbeddingSharding, LinearSharding, Mode

_rows = ActivationSharding(tokens=("s",))

MODE = Mode(
    name="sequence",
    size_rule="at least 1",
    axes=lambda size, depth: {"s": size} if size >= 1 else None,
    outer=_rows,
    inner=_rows,
    up=LinearSharding(),
    down=LinearSharding(),
    lookup=EmbeddingSharding(tokens=("s",)),
    colossal_groups={"s": "SEQUENCE"},
)
