"""The order of a micro-batch's rows: complete, even, balanced, and unchanged for whole samples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import get_args

import pytest

from models.parallel.registry import modes
from models.parallel.rows import ContextExchange, RowOrder, Segment, before, row_multiple
from tests.support.mode_sizes import ModeSize, mode_sizes

SHAPES = list(product((1, 2, 3, 5, 8), (1, 2, 7, 16)))
CUTS = list(mode_sizes(9))
CONTEXTS = get_args(ContextExchange)


def axes_of(cut: ModeSize) -> dict[str, int]:
    axes = modes()[cut.mode].axes(cut.tensor, cut.depth)
    assert axes is not None
    return axes


def orders(cut: ModeSize) -> Iterator[tuple[RowOrder, int, int]]:
    """Yield an order, its samples and their length."""
    for samples, length in SHAPES:
        order = RowOrder.of(modes()[cut.mode], axes_of(cut), samples * length, length)
        yield order, samples, length


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_rows_hold_every_token_once_in_even_shards(cut: ModeSize) -> None:
    mode, axes = modes()[cut.mode], axes_of(cut)
    shards = [prod(axes[axis] for axis in layout.tokens) for layout in (mode.outer, mode.inner)]
    for order, samples, length in orders(cut):
        tokens = [token for piece in order.tokens() for token in piece]
        assert sorted(tokens) == list(range(order.rows))
        assert all(order.rows % n == 0 for n in shards)
        assert 0 <= order.rows - samples * length < row_multiple(mode, axes)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_whole_samples_stay_in_order_and_gather_nothing(cut: ModeSize) -> None:
    for order, samples, length in orders(cut):
        shards = prod(order.sizes)
        if samples % shards == 0 and order.rows == samples * length:
            assert order.is_whole
            assert (order.gathered_axes, order.tokens()) == (
                (),
                [range(n * order.local, (n + 1) * order.local) for n in range(shards)],
            )
        elif order.rows == samples * length:
            assert not order.is_whole


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_group_holds_every_key_that_its_rows_attend_to(cut: ModeSize) -> None:
    """Segments, read token by token, are the rows of the shard; each sample begins in the group."""
    for order, _, length in orders(cut):
        size = order.group * order.local
        every = [token for piece in order.tokens() for token in piece]
        for shard in range(prod(order.sizes)):
            group, member = divmod(shard, order.group)
            base, rows = group * size, every[shard * order.local : (shard + 1) * order.local]
            found = [0] * order.local
            for segment in order.segments(member):
                assert segment.first >= 0
                for n in range(segment.rows):
                    sample, position = divmod(n, segment.stop - segment.start)
                    token = segment.first + sample * length + segment.start + position
                    assert token < size
                    found[segment.row + n] = base + token
                    assert (base + segment.first) % length == 0 or order.gathered == len(order.axes)
            assert found == rows


def tokens_of(segment: Segment) -> set[int]:
    return set(range(segment.first, segment.first + segment.start))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_ranks_receive_the_tokens_that_their_rows_attend_to_and_no_others(cut: ModeSize) -> None:
    """Also those that each segment attends to are consecutive among the tokens of a round."""
    for order, _, _ in orders(cut):
        for member, context in product(range(order.group), CONTEXTS):
            segments = order.segments(member)
            past = set[int]().union(*map(tokens_of, segments))
            own = order.tokens_in(member, order.needed(member, member))
            rounds = [order.received(member, steps) for steps in order.rounds(context)]
            found = [token for some in (own, *rounds) for tokens in some for token in tokens]
            assert sorted(found) == sorted(past), "each of them once"
            sources = [(member + n) % order.group for steps in order.rounds(context) for n in steps]
            assert sorted(sources) == [n for n in range(order.group) if n != member]
            for segment, some in product(segments, (own, *rounds)):
                every = [token for tokens in some for token in tokens]
                places, tokens = before(segment, some)
                assert [token for part in tokens for token in part] == every[
                    places.start : places.stop
                ]
                assert {*every} & tokens_of(segment) == {*every[places.start : places.stop]}


def test_fewer_keys_are_exchanged_the_more_samples_a_group_holds() -> None:
    """A gather of all keys would bring 3 x 4 x local tokens to the 4 ranks."""
    brought = {}
    for samples in (1, 2, 3, 5):
        order = RowOrder.of(modes()["2d"], {"r": 4, "c": 4}, samples * 16, 16)
        tokens = [order.received(member, range(1, 4)) for member in range(4)]
        brought[samples] = sum(len(some) for one in tokens for some in one) / (12 * order.local)
    assert brought == pytest.approx({1: 3 / 4, 2: 1 / 2, 3: 23 / 72, 5: 1 / 5})


def test_fewest_axes_are_gathered() -> None:
    axes = {"d": 2, "r": 2, "c": 2}
    gathered = {
        samples: RowOrder.of(modes()["2.5d"], axes, samples * 8, 8).gathered_axes
        for samples in (1, 2, 3, 4)
    }
    assert gathered == {1: ("d", "r"), 2: ("r",), 3: ("d", "r"), 4: ()}


@pytest.mark.parametrize(("samples", "length"), [(1, 48), (3, 16), (2, 24), (5, 48), (7, 16)])
def test_shards_of_a_group_have_equally_many_pairs(samples: int, length: int) -> None:
    for name, axes in (("2d", {"r": 4, "c": 4}), ("3d", {"c": 2, "a": 2, "b": 2})):
        order = RowOrder.of(modes()[name], axes, samples * length, length)
        assert not order.is_whole
        pairs = [
            sum(segment.pairs for segment in order.segments(member))
            for member in range(order.group)
        ]
        assert pairs == [samples * length * (length + 1) // 8] * order.group
        assert order.idle == 0


def test_idle_share_of_attention_counts_pairs_token_by_token() -> None:
    """Of pieces that cannot be equal: 22 tokens over 4 ranks, padded to 24, so of 3 rows each."""
    order = RowOrder.of(modes()["2d"], {"r": 4, "c": 4}, 22, 22)
    pairs = [
        sum(token % 22 + 1 for piece in order.pieces(member) for token in piece)
        for member in range(4)
    ]
    assert order.idle == pytest.approx(1 - sum(pairs) / (4 * max(pairs)), rel=1e-12)
    assert 0 < order.idle < 0.3
