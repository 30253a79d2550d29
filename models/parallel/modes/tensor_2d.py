"""2d: a q x q grid of rows r and columns c (SUMMA; Xu et al. 2021, "Optimus")."""

from math import isqrt

from models.parallel.mode import ActivationSharding, EmbeddingSharding, Gather, LinearSharding, Mode


def axes(size: int, depth: int) -> dict[str, int] | None:
    q = isqrt(size) if size > 0 else 0
    return {"r": q, "c": q} if q and q * q == size else None


_grid = ActivationSharding(tokens=("r",), hidden=("c",))
_product = LinearSharding(
    weight_in=("r",), weight_out=("c",), gather_x=Gather(axis="c", on="H"), gather_w="r"
)

MODE = Mode(
    name="2d",
    size_rule="a square",
    axes=axes,
    outer=_grid,
    inner=_grid,
    up=_product,
    down=_product,
    lookup=EmbeddingSharding(scatter_y="c", swap=("r", "c")),
    colossal_groups={"r": "PARALLEL_2D_COL", "c": "PARALLEL_2D_ROW"},
)
