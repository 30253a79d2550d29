"""2.5d: DEPTH stacked q x q grids, each with its own tokens (Wang et al. 2021, "Tesseract")."""

from math import isqrt

from models.parallel.mode import ActivationSharding, EmbeddingSharding, Gather, LinearSharding, Mode


def axes(size: int, depth: int) -> dict[str, int] | None:
    if size < 1 or depth < 1 or size % depth:
        return None
    q = isqrt(size // depth)
    return {"d": depth, "r": q, "c": q} if q * q * depth == size else None


_grid = ActivationSharding(tokens=("d", "r"), hidden=("c",))
_product = LinearSharding(
    weight_in=("r",), weight_out=("c",), gather_x=Gather(axis="c", on="H"), gather_w="r"
)

MODE = Mode(
    name="2.5d",
    size_rule="DEPTH times a square",
    axes=axes,
    outer=_grid,
    inner=_grid,
    up=_product,
    down=_product,
    lookup=EmbeddingSharding(tokens=("d",), scatter_y="c", swap=("r", "c")),
    colossal_groups={"d": "PARALLEL_2P5D_DEP", "r": "PARALLEL_2P5D_COL", "c": "PARALLEL_2P5D_ROW"},
    uses_depth=True,
)
