"""The rows of a micro-batch: their order, their padding and their shards. No torch.

The tokens of a micro-batch are numbered sample by sample. A mode shards rows evenly, so a few rows
are appended if their number does not divide. If every shard has whole samples where attention is
computed, rows are in the order of tokens and attention is local. Otherwise the ranks of a group
hold samples together and gather each other's keys and values, and each rank has an early and a late
piece of the group's tokens ("zigzag"): a causal mask lets token i of a sample attend to i + 1
tokens, and every rank's two pieces together have equally many pairs of token and key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
    """The first token of the sample, counted from the first one of the group."""
    start: int
    """Position of the first row within its sample."""
    stop: int
    """Position after the last row."""
    count: int = 1

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.count * (self.stop - self.start)

    @property
    def pairs(self) -> int:
        """The number of pairs of a row and a key that a causal mask admits."""
        return self.count * (self.stop * (self.stop + 1) - self.start * (self.start + 1)) // 2


ContextExchange = Literal["gather", "ring"]
"""The exchange of keys and values among ranks that hold samples together: all at once, or the block
of one rank at a time."""


@dataclass(frozen=True, kw_only=True)
class RowOrder:
    """The rows of a micro-batch of samples of ``length`` tokens, where attention is computed."""

    rows: int
    """Their number on all ranks of a tensor group, padding included."""
    length: int
    axes: Axes
    """The axes that shard them, slowest first."""
    sizes: tuple[int, ...]
    """The number of ranks along each."""

    @classmethod
    def of(cls, mode: Mode, sizes: Mapping[str, int], tokens: int, length: int) -> RowOrder:
        """Return the row order of a micro-batch of ``tokens`` tokens. ``sizes``: ranks by axis."""
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
        """Number of the last axes over which keys are gathered: the fewest that give whole samples,
        or all."""
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
        """Return the tokens of shard ``member`` of a group, counted from the first of the group."""
        late, end = self.local - self.early, self.group * self.local
        early = range(member * self.early, (member + 1) * self.early)
        return (early, range(end - (member + 1) * late, end - member * late)) if late else (early,)

    def segments(self, member: int) -> list[Segment]:
        """Return the rows of shard ``member`` of a group by sample, in the order of the rows.
        Padding is a last sample of its own."""
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
        """Return the rows of shard ``source`` that rows of shard ``member`` attend to, apart from
        those of their own segment: the tokens before a piece of ``member`` in its first sample.

        They are consecutive: before an early piece they are the last rows of another early piece,
        and before a late piece also the first rows of the late piece that follows those.
        """
        if (member, source) not in self._needs:
            self._needs[member, source] = self._find_needed(member, source)
        return self._needs[member, source]

    @cached_property
    def _needs(self) -> dict[tuple[int, int], range]:
        return {}

    def _find_needed(self, member: int, source: int) -> range:
        found, row = list[range](), 0
        for piece in self.pieces(source):
            for own in self.pieces(member):
                first = max(own.start - own.start % self.length, piece.start)
                stop = min(own.start, piece.stop)
                if first < stop:
                    found.append(range(row + first - piece.start, row + stop - piece.start))
            row += len(piece)
        if not found:
            return range(0)
        return range(min(rows.start for rows in found), max(rows.stop for rows in found))

    def tokens_in(self, member: int, rows: range) -> list[range]:
        """Return the tokens of consecutive rows of shard ``member``, counted from the group's
        first one."""
        found, row = [], 0
        for piece in self.pieces(member):
            first, stop = max(rows.start, row), min(rows.stop, row + len(piece))
            if first < stop:
                found.append(range(piece.start + first - row, piece.start + stop - row))
            row += len(piece)
        return found

    def rounds(self, context: ContextExchange) -> list[range]:
        """Return the rounds of an exchange within a group: in one of ``range(a, b)``, shard n
        receives from the shards n + a to n + b - 1, counted cyclically."""
        if context == "gather":
            return [range(1, self.group)] if self.group > 1 else []
        return [range(step, step + 1) for step in range(1, self.group)]

    def received(self, member: int, steps: range) -> list[range]:
        """Return the tokens that shard ``member`` receives in a round, in the order of shards."""
        sources = sorted((member + step) % self.group for step in steps)
        return [
            tokens
            for source in sources
            for tokens in self.tokens_in(source, self.needed(member, source))
        ]

    @cached_property
    def idle(self) -> float:
        """Fraction of attention's work during which ranks of a group wait for the slowest rank,
        which has the most pairs of a row and a key: 0 if all have equally many."""
        pairs = [
            sum(segment.pairs for segment in self.segments(member)) for member in range(self.group)
        ]
        return 1 - sum(pairs) / (len(pairs) * max(pairs))

    def tokens(self) -> list[range]:
        """Return the tokens of all rows in their order, as ranges."""
        size = self.group * self.local
        return [
            range(base + piece.start, base + piece.stop)
            for base in range(0, self.rows, size)
            for member in range(self.group)
            for piece in self.pieces(member)
        ]


def before(segment: Segment, tokens: Sequence[range]) -> tuple[range, list[range]]:
    """Return the tokens before ``segment`` in its sample that are among ``tokens``, and their
    places there.

    The places are consecutive for tokens that a shard receives in a round, by the order of shards:
    those before its early piece come from the shards before it, and are all or none of the tokens
    of these.
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
    """Return the multiple of rows that a mode shards evenly."""
    layouts = (mode.outer, mode.inner)
    return lcm(*(prod(sizes[axis] for axis in layout.tokens) for layout in layouts))
