"""The arrangement of GPUs in a drawing: blocks of planes of rows, without the drawing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from engine.errors import UserError
from engine.layout import Layout

LINE = 8  # ranks per row where there is a single axis
MAX_GPUS = 4096  # largest layout that is drawn


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Ranks on a grid."""

    index: Mapping[str, int]
    """The coordinates on the axes that separate planes; empty if there is a single plane."""
    rows: tuple[str, ...]
    """For each row, the coordinate that its ranks share."""
    columns: tuple[str, ...]
    """For each column, the coordinate that its ranks share."""
    ranks: tuple[tuple[int, ...], ...]
    """The ranks, row by row."""


@dataclass(frozen=True, kw_only=True)
class GpuBlock:
    """GPUs that are drawn together: one pipeline stage of one copy of the model, or, without tensor
    parallelism, one pipeline stage of all copies."""

    index: Mapping[str, int]
    """The coordinates that the GPUs share: on 'data' and 'pipeline', or on 'pipeline'."""
    planes: tuple[Plane, ...]

    @property
    def stage(self) -> int:
        return self.index["pipeline"]


def blocks(layout: Layout) -> list[GpuBlock]:
    """Arrange every rank in a block, ordered by data-parallel copy, then by stage.

    Raises:
        UserError: there are more than MAX_GPUS GPUs.
    """
    if layout.gpus > MAX_GPUS:
        raise UserError(
            f"a map shows at most {MAX_GPUS} GPUs, not {layout.gpus}; leave the map out, or pass "
            "fewer --gpus"
        )
    inner = layout.tensor_axes if layout.tensor > 1 else {"data": layout.data}
    outer = {axis: size for axis, size in layout.axes.items() if axis not in inner}
    outer = {axis: outer[axis] for axis in ("data", "pipeline") if axis in outer}
    return [
        GpuBlock(index=index, planes=tuple(_planes(layout, index, inner))) for index in _walk(outer)
    ]


def title(block: GpuBlock, layout: Layout) -> str:
    """Return the title that distinguishes a block from the others."""
    if layout.pipeline > 1 or layout.data == 1:
        return f"stage {block.stage}"
    return f"data {block.index['data']}" if "data" in block.index else "all GPUs"


def _planes(layout: Layout, fixed: Mapping[str, int], inner: Mapping[str, int]) -> Iterator[Plane]:
    """Yield the planes of a block. The last two axes span a plane; a single axis is one row, or
    several if it is long."""
    whole = {**dict.fromkeys(layout.axes, 0), **fixed}
    *slow, across = {axis: size for axis, size in inner.items() if size > 1} or dict(inner)
    if not slow:
        yield _line(layout, whole, across)
        return
    down = slow.pop()
    for index in _walk({axis: inner[axis] for axis in slow}):
        yield Plane(
            index=index,
            rows=tuple(f"{down}{row}" for row in range(inner[down])),
            columns=tuple(f"{across}{column}" for column in range(inner[across])),
            ranks=tuple(
                tuple(
                    layout.rank({**whole, **index, down: row, across: column})
                    for column in range(inner[across])
                )
                for row in range(inner[down])
            ),
        )


def _line(layout: Layout, whole: Mapping[str, int], axis: str) -> Plane:
    size = layout.axes[axis]
    name = "data " if axis == "data" else axis
    ranks = [layout.rank({**whole, axis: index}) for index in range(size)]
    if size <= LINE:
        columns = tuple(f"{name}{index}" for index in range(size))
        return Plane(index={}, rows=("",), columns=columns, ranks=(tuple(ranks),))
    starts = range(0, size, LINE)
    return Plane(
        index={},
        rows=tuple(f"{name}{start}" for start in starts),
        columns=tuple(f"+{index}" for index in range(LINE)),
        ranks=tuple(tuple(ranks[start : start + LINE]) for start in starts),
    )


def _walk(axes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    for index in product(*map(range, axes.values())):
        yield dict(zip(axes, index, strict=True))
