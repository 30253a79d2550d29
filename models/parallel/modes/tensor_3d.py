"""3d: an l x l x l cube with inputs along a, weights along b, outputs along c (Bian et al. 2021,
"Maximizing Parallelism in Distributed Training for Huge Neural Networks")."""

from models.parallel.mode import ActivationSharding, EmbeddingSharding, Gather, LinearSharding, Mode


def axes(size: int, depth: int) -> dict[str, int] | None:
    edge = round(size ** (1 / 3)) if size > 0 else 0
    return {"c": edge, "a": edge, "b": edge} if edge and edge**3 == size else None


MODE = Mode(
    name="3d",
    size_rule="a cube",
    axes=axes,
    outer=ActivationSharding(tokens=("b", "a"), hidden=("c",)),
    inner=ActivationSharding(tokens=("b", "c"), hidden=("a",)),
    up=LinearSharding(
        weight_in=("c", "b"),
        weight_out=("a",),
        gather_x=Gather(axis="a", on="T"),
        gather_w="b",
        scatter_y="c",
    ),
    down=LinearSharding(
        weight_in=("a", "b"),
        weight_out=("c",),
        gather_x=Gather(axis="c", on="T"),
        gather_w="b",
        scatter_y="a",
    ),
    lookup=EmbeddingSharding(tokens=("b",), gather_w="b", scatter_y="a"),
    colossal_groups={
        "c": "PARALLEL_3D_OUTPUT",
        "a": "PARALLEL_3D_INPUT",
        "b": "PARALLEL_3D_WEIGHT",
    },
)
