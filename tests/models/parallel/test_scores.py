"""Loss and top-k hits in chunks, with any sharding of the vocabulary, against full logits."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.parallel.context import ParallelContext
from models.parallel.layers import TokenEmbedding
from models.parallel.loss import Head, loss_and_top_k, target_ranks
from models.parallel.targets import IGNORED
from tests.models.parallel.support import CHUNKS, HIDDEN, TOKENS, WORDS, Largest, head_of, problem
from tests.support.local_shards import piece
from tests.support.mode_sizes import ModeSize, full_mode_sizes
from tests.support.training import TrainingCase, open_partition
from tests.support.worlds import run_world

TOPS = (1, 3, 10)
CUTS = [*full_mode_sizes(), ModeSize("1d", 4, 1)]


def tied(words: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a problem in which many logits of a token are exactly equal."""
    x, w, targets = problem(words)
    return x.detach().round(), w.detach().sign(), targets


def plainly(x: Tensor, w: Tensor, targets: Tensor) -> list[float]:
    """Return loss and hits from a sort of each token's logits, the lower id first if equal."""
    logits = x @ w.t()
    hits = [0] * len(TOPS)
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        if target != IGNORED:
            order = sorted(range(len(row)), key=lambda word: (-row[word], word))
            hits = [n + (order.index(target) < top) for n, top in zip(hits, TOPS, strict=True)]
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return [float(loss), *hits]


def assert_same(found: list[float], wanted: list[float]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-12, abs=0)
    assert found[1:] == wanted[1:]


@pytest.mark.parametrize("chunk", [None, 1, 5, 10 * TOKENS])
@pytest.mark.parametrize("make", [problem, tied])
def test_scores_equal_those_of_full_logits_for_any_chunk(make, chunk):
    x, w, targets = make(29)
    found = loss_and_top_k(x, w, targets, head_of(29, chunk=chunk), TOPS)
    assert found.dtype == torch.float64
    assert_same(found.tolist(), plainly(x.detach(), w.detach(), targets))


def test_equal_logits_are_ranked_by_id():
    logits = torch.tensor([[2.0, 5.0, 2.0, 2.0, 1.0]]).repeat(5, 1)
    found = target_ranks(logits, torch.arange(5), head_of(5, torch.float32))
    assert found.tolist() == [1, 0, 2, 3, 4]


def test_full_logits_are_never_allocated():
    tokens, words, chunk = 512, 1000, 32
    x, w = torch.randn(tokens, HIDDEN), torch.randn(words, HIDDEN)
    with Largest() as largest:
        loss_and_top_k(
            x, w, torch.randint(words, (tokens,)), head_of(words, torch.float32, chunk), TOPS
        )
    assert largest.elements == chunk * words


Found = dict[tuple[ModeSize, int, int | None, bool], list[float]]


def cut_scores(rank: int, size: int, cuts: list[ModeSize]) -> Found:
    found: Found = {}
    for cut in cuts:
        part = open_partition(TrainingCase(**cut._asdict(), dtype=torch.float64), rank)
        for words, chunk, equal in product(WORDS, CHUNKS, (False, True)):
            found[cut, words, chunk, equal] = scores_of(part, words, chunk, equal)
    return found


def scores_of(part: ParallelContext, words: int, chunk: int | None, equal: bool) -> list[float]:
    """Return the scores over all ranks. Padding rows are filled so that they would rank first."""
    x, w, targets = tied(words) if equal else problem(words)
    table = TokenEmbedding(part, words, HIDDEN, std=1.0)
    box = table.shards["weight"]
    with torch.no_grad():
        table.weight.fill_(9)[box.valid_slices] = w[box.slices]
    head = Head(parallel=part, shard=box, weight_sharding=table.as_head, chunk=chunk)
    share = loss_and_top_k(
        piece(x.detach(), part.mode.outer, part), table.weight, targets, head, TOPS
    )
    return part.axes["world"].all_reduce(share).tolist()


@cache
def scores_in(world: int) -> list[Found]:
    return run_world(world, cut_scores, [cut for cut in CUTS if cut.tensor == world])


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_sharded_vocabulary_gives_the_same_scores(cut: ModeSize) -> None:
    for words, equal in product(WORDS, (False, True)):
        x, w, targets = tied(words) if equal else problem(words)
        wanted = plainly(x.detach(), w.detach(), targets)
        for found in scores_in(cut.tensor):
            for chunk in CHUNKS:
                assert_same(found[cut, words, chunk, equal], wanted)
