"""1d: Megatron's columns and rows (Shoeybi et al. 2019) with sequence parallelism
(Korthikanti et al. 2022)."""

from models.parallel.mode import ActivationSharding, EmbeddingSharding, Gather, LinearSharding, Mode

MODE = Mode(
    name="1d",
    size_rule="at least 1",
    axes=lambda size, depth: {"t": size} if size >= 1 else None,
    outer=ActivationSharding(tokens=("t",)),
    inner=ActivationSharding(hidden=("t",)),
    up=LinearSharding(weight_out=("t",), gather_x=Gather(axis="t", on="T")),
    down=LinearSharding(weight_in=("t",), scatter_y="t"),
    lookup=EmbeddingSharding(scatter_y="t"),
    colossal_groups={"t": "PARALLEL_1D"},
)
