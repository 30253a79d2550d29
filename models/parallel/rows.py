"""The rows of a micro-batch's activations: order, padding and shards. Does not import torch.

Each row is a token, or padding: a mode shards rows evenly, so a few rows are appended if the number
of tokens does not divide. Tokens are numbered sample by sample. If every shard has whole samples
where attention is computed, rows are in the order of tokens and attention is local. Otherwise the
ranks of a group hold samples together and gather each other's keys and values, and each rank has an
early and a late piece of the group's tokens ("zigzag"): a causal mask lets token i of a sample
attend to i + 1 tokens, and every rank's two pieces together have equally many pairs of token and
key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import lcm, prod
from typing import Literal

from models.parallel.mode import Axes, Mode
from models.parallel.shard import round_up


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive rows of a shard in one sample, or in ``count`` whole samples."""

    row: int
    """The first row within the shard."""
    first: int
    """The first token of the sample, counted from the group's first token."""
    start: int
    """Position of the first row within its sample."""
    stop: int
    """Position of the last row within its sample, plus one."""
    count: int = 1

    @property
    def rows(self) -> int:
        """The number of rows in all samples of the segment."""
        return self.count * (self.stop - self.start)

    @property
    def pairs(self) -> int:
        """The number of (row, key) pairs that a causal mask admits for these rows."""
        return self.count * (self.stop * (self.stop + 1) - self.start * (self.start + 1)) // 2


ContextExchange = Literal["gather", "ring"]
"""How ranks that hold samples together exchange keys and values: all at once, or one rank's at a
time."""


@dataclass(frozen=True, kw_only=True)
class RowOrder:
    """How ranks hold a micro-batch's rows in attention. Each sample has ``length`` tokens."""

    rows: int
    """Number of rows of all ranks of a tensor group, padding included."""
    length: int
    axes: Axes
    """The axes that shard the rows, slowest first."""
    sizes: tuple[int, ...]
    """The number of ranks along each of ``axes``."""

    @classmethod
    def of(cls, mode: Mode, sizes: Mapping[str, int], tokens: int, length: int) -> RowOrder:
        """Return the row order of ``tokens`` tokens. ``sizes``: the number of ranks by axis."""
        multiple = row_multiple(mode, sizes)
        return cls(
            rows=round_up(tokens, multiple),
            length=length,
            axes=mode.inner.tokens,
            sizes=tuple(sizes[axis] for axis in mode.inner.tokens),
        )

    @cached_property
    def local(self) -> int:
        """Number of rows of a shard."""
        return self.rows // prod(self.sizes)

    @cached_property
    def is_whole(self) -> bool:
        """True if every shard has whole samples: attention needs no other rank's keys."""
        return self.local % self.length == 0

    @cached_property
    def gathered(self) -> int:
        """How many of ``axes``, from the last, keys are gathered over: the fewest that give whole
        samples, or all."""
        for axes in range(len(self.axes)):
            if self._group(axes) * self.local % self.length == 0:
                return axes
        return len(self.axes)

    @property
    def gathered_axes(self) -> Axes:
        """The axes over which keys are gathered, slowest first."""
        return self.axes[len(self.axes) - self.gathered :]

    @cached_property
    def group(self) -> int:
        """Number of shards that hold samples together."""
        return self._group(self.gathered)

    def _group(self, axes: int) -> int:
        return prod(self.sizes[len(self.sizes) - axes :])

    @cached_property
    def early(self) -> int:
        """Number of rows in a shard's early piece; the shard's other rows are its late piece."""
        return self.local if self.group == 1 else -(-self.local // 2)

    def pieces(self, member: int) -> tuple[range, ...]:
        """Return the early and the late piece of shard ``member``, as tokens counted from the
        group's first token."""
        late, end = self.local - self.early, self.group * self.local
        early = range(member * self.early, (member + 1) * self.early)
        return (early, range(end - (member + 1) * late, end - member * late)) if late else (early,)

    def segments(self, member: int) -> list[Segment]:
        """Divide the rows of shard ``member`` of a group by sample; return the segments in order.
        Padding counts as a last sample."""
        segments, row = list[Segment](), 0
        for piece in self.pieces(member):
            segments.extend(self._by_sample(piece, row))
            row += len(piece)
        return segments

    def _by_sample(self, piece: range, row: int) -> Iterator[Segment]:
        token, length = piece.start, self.length
        while token < piece.stop:
            start = token % length
            count = 1 if start else max(1, (piece.stop - token) // length)
            stop = min(length, start + piece.stop - token)
            yield Segment(row=row, first=token - start, start=start, stop=stop, count=count)
            row, token = row + count * (stop - start), token + count * (stop - start)

    def needed(self, member: int, source: int) -> range:
        """Return the rows of shard ``source`` that shard ``member`` attends to from another
        segment: tokens before a piece of ``member``, in the sample in which the piece begins.

        The rows are consecutive: an early piece needs the last rows of the early piece of
        ``source``; a late piece may also need the first rows of the late piece of ``source``.
        """
        return _needed(self, member, source)

    def tokens_in(self, member: int, rows: range) -> list[range]:
        """Return the tokens of the consecutive ``rows`` of shard ``member``, counted from the
        group's first token."""
        found, row = [], 0
        for piece in self.pieces(member):
            first, stop = max(rows.start, row), min(rows.stop, row + len(piece))
            if first < stop:
                found.append(range(piece.start + first - row, piece.start + stop - row))
            row += len(piece)
        return found

    def rounds(self, context: ContextExchange) -> list[range]:
        """Return the rounds in which a group exchanges keys, as ranges of steps: in a round
        ``range(a, b)`` shard n receives from the shards n + a to n + b - 1, modulo the group."""
        if context == "gather":
            return [range(1, self.group)] if self.group > 1 else []
        return [range(step, step + 1) for step in range(1, self.group)]

    def received(self, member: int, steps: range) -> list[range]:
        """Return the tokens that shard ``member`` receives in round ``steps``, by source shard."""
        sources = sorted((member + step) % self.group for step in steps)
        return [
            tokens
            for source in sources
            for tokens in self.tokens_in(source, self.needed(member, source))
        ]

    @cached_property
    def idle(self) -> float:
        """Fraction of attention's time that a group's ranks wait, on average, for the rank with the
        most (row, key) pairs: 0 if all have equally many."""
        pairs = [
            sum(segment.pairs for segment in self.segments(member)) for member in range(self.group)
        ]
        return 1 - sum(pairs) / (len(pairs) * max(pairs))

    def tokens(self) -> list[range]:
        """Return the token of every row as ranges, in the order of the rows."""
        size = self.group * self.local
        return [
            range(base + piece.start, base + piece.stop)
            for base in range(0, self.rows, size)
            for member in range(self.group)
            for piece in self.pieces(member)
        ]


@lru_cache(maxsize=2**17)  # each layer of each micro-batch asks again
def _needed(order: RowOrder, member: int, source: int) -> range:
    found, row = list[range](), 0
    for piece in order.pieces(source):
        for own in order.pieces(member):
            first = max(own.start - own.start % order.length, piece.start)
            stop = min(own.start, piece.stop)
            if first < stop:
                found.append(range(row + first - piece.start, row + stop - piece.start))
        row += len(piece)
    if not found:
        return range(0)
    return range(min(rows.start for rows in found), max(rows.stop for rows in found))


def before(segment: Segment, tokens: Sequence[range]) -> tuple[range, list[range]]:
    """Find the tokens among ``tokens`` that precede ``segment`` in its sample; return their places
    in ``tokens`` and the tokens.

    The places are consecutive if ``tokens`` are the tokens that a shard receives in a round, in the
    order of shards: the tokens before the shard's early piece come from the shards before it, and
    are either all tokens from those shards or none.
    """
    found, place, first = list[range](), 0, 0
    for some in tokens:
        start = max(some.start, segment.first)
        stop = min(some.stop, segment.first + segment.start)
        if start < stop:
            first = first if found else place + start - some.start
            found.append(range(start, stop))
        place += len(some)
    return range(first, first + sum(map(len, found))), found


def row_multiple(mode: Mode, sizes: Mapping[str, int]) -> int:
    """Return the number that rows must be a multiple of for the mode to shard them evenly."""
    layouts = (mode.outer, mode.inner)
    return lcm(*(prod(sizes[axis] for axis in layout.tokens) for layout in layouts))
