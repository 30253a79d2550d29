"""The fused head and loss against torch's cross_entropy on full logits."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.parallel.context import ParallelContext
from models.parallel.layers import TokenEmbedding
from models.parallel.loss import Head, HeadLoss
from models.parallel.targets import IGNORED
from tests.models.parallel.support import (
    CHUNKS,
    HIDDEN,
    TOKENS,
    WHOLE,
    WORDS,
    Largest,
    head_of,
    problem,
)
from tests.support.local_shards import piece, summed
from tests.support.mode_sizes import ModeSize, full_mode_sizes
from tests.support.training import TrainingCase, open_partition
from tests.support.worlds import run_world


def plain(x: Tensor, w: Tensor, targets: Tensor, scale: float) -> Tensor:
    return scale * F.cross_entropy(x @ w.t(), targets, ignore_index=IGNORED, reduction="sum")


def ours(x: Tensor, w: Tensor, targets: Tensor, scale: float, head: Head) -> Tensor:
    loss: Tensor = HeadLoss.apply(x, w, targets, scale, head)
    return loss


@pytest.mark.parametrize("chunk", [None, 1, 5, 8, TOKENS, 10 * TOKENS])
def test_loss_and_gradients_equal_torch_for_any_chunk(chunk: int | None) -> None:
    x, w, targets = problem(29)
    wanted = torch.autograd.grad(3 * plain(x, w, targets, 0.25), (x, w))
    loss = ours(x, w, targets, 0.25, head_of(29, chunk=chunk))
    found = torch.autograd.grad(3 * loss, (x, w))
    torch.testing.assert_close(loss, plain(x, w, targets, 0.25), rtol=1e-14, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_gradient_passes_gradcheck() -> None:
    x, w, targets = problem(11)
    head = head_of(11, chunk=5)
    assert torch.autograd.gradcheck(
        lambda x, w: ours(x, w, targets, 0.5, head), (x, w), fast_mode=True
    )


@pytest.mark.parametrize("chunk", [None, 5])
def test_loss_and_gradients_are_zero_without_targets(chunk: int | None) -> None:
    x, w, targets = problem(29)
    targets[:] = IGNORED
    loss = ours(x, w, targets, 1.0, head_of(29, chunk=chunk))
    assert float(loss.detach()) == 0.0
    for gradient in torch.autograd.grad(loss, (x, w)):
        assert not gradient.count_nonzero()


def test_large_logits_do_not_overflow() -> None:
    x, w, targets = problem(29)
    x, w = (x.detach().float() * 1e3).requires_grad_(), w.detach().float().requires_grad_()
    loss = ours(x, w, targets, 1.0, head_of(29, torch.float32))
    torch.testing.assert_close(loss, plain(x, w, targets, 1.0))
    torch.testing.assert_close(
        torch.autograd.grad(loss, (x, w)),
        torch.autograd.grad(plain(x, w, targets, 1.0), (x, w)),
    )


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_gradients_not_required_are_not_computed(wanted: tuple[bool, bool]) -> None:
    x, w, targets = problem(29)
    x, w = x.detach().requires_grad_(wanted[0]), w.detach().requires_grad_(wanted[1])
    loss = ours(x, w, targets, 1.0, head_of(29, chunk=5))
    assert loss.requires_grad == any(wanted)
    torch.testing.assert_close(loss.detach(), plain(x, w, targets, 1.0).detach())
    if any(wanted):
        loss.backward()
        assert (x.grad is not None, w.grad is not None) == wanted


def test_gradients_are_scaled_before_the_cast() -> None:
    """Gradients of a mean over 65,536 targets underflow in fp16 unless they are scaled before the
    cast. In this order bf16, too, rounds only once, from the scaled value."""
    x, w, targets = problem(29)
    x, w = x.detach().half().requires_grad_(), w.detach().float().requires_grad_()
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float32, compute=torch.float16
    )
    head = Head(
        parallel=part, shard=part.shard((29, HIDDEN), ((), ())), weight_sharding=WHOLE, chunk=5
    )
    scale = 2.0**16 / 2**10  # a loss scale over the targets of the batch
    (found,) = torch.autograd.grad(ours(x, w, targets, scale, head), w)
    (wanted,) = torch.autograd.grad(plain(x.float(), w.half().float(), targets, scale), w)
    assert float((found - wanted).norm() / wanted.norm()) < 2e-3
    tiny = ours(x, w, targets, 2.0**-30, head)
    (lost,) = torch.autograd.grad(tiny, w)
    assert not lost.count_nonzero(), "fp16 underflows without the scale"


def test_full_logits_are_never_allocated() -> None:
    """This holds in forward and in backward; only the two gradients are saved in between."""
    tokens, words, chunk = 512, 1000, 32
    x = torch.randn(tokens, HIDDEN, requires_grad=True)
    w = torch.randn(words, HIDDEN, requires_grad=True)
    targets = torch.randint(words, (tokens,))
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        ours(x, w, targets, 1.0, head_of(words, torch.float32, chunk)).backward()
    assert largest.elements == chunk * words
    assert sum(kept) == (tokens + words) * HIDDEN

    with Largest() as plainly:
        plain(x, w, targets, 1.0).backward()
    assert plainly.elements == tokens * words, "the measurement finds full logits"


def test_default_chunk_is_bounded() -> None:
    """The bound on a CPU is 32 MiB of logits, over all rows that a chunk gathers."""
    head = head_of(50_257, torch.float32)
    first, _ = next(head.chunks(1 << 20, 1 << 20))
    assert 16 << 20 < (first.stop - first.start) * 50_257 * 4 <= 32 << 20


CUTS = [*full_mode_sizes(), ModeSize("1d", 3, 1), ModeSize("1d", 4, 1)]

Found = dict[
    tuple[ModeSize, int, int | None], dict[str, float]
]  # errors by mode size, vocabulary and chunk


def cut_losses(rank: int, size: int, cuts: list[ModeSize]) -> Found:
    found: Found = {}
    for cut in cuts:
        part = open_partition(TrainingCase(**cut._asdict(), dtype=torch.float64), rank)
        for words, chunk in product(WORDS, CHUNKS):
            found[cut, words, chunk] = cut_loss(part, words, chunk)
    return found


def cut_loss(part: ParallelContext, words: int, chunk: int | None) -> dict[str, float]:
    """Return the errors of the loss of all ranks and of this rank's shards of the gradients."""
    whole_x, whole_w, targets = problem(words)
    table = TokenEmbedding(part, words, HIDDEN, std=1.0)
    box = table.shards["weight"]
    with torch.no_grad():
        table.weight.zero_()[box.valid_slices] = whole_w[box.slices]
    x = piece(whole_x.detach(), part.mode.outer, part).requires_grad_()
    head = Head(parallel=part, shard=box, weight_sharding=table.as_head, chunk=chunk)
    share = ours(x, table.weight, targets, 0.5, head)
    share.backward()
    wanted = plain(whole_x, whole_w, targets, 0.5)
    wanted.backward()
    loss = part.axes["world"].all_reduce(share.detach().clone())
    assert x.grad is not None
    assert table.weight.grad is not None
    assert whole_x.grad is not None
    assert whole_w.grad is not None
    gradient = summed(table.weight.grad, box, part)
    errors = {
        "loss": float((loss - wanted.detach()).abs()),
        "dx": float((x.grad - piece(whole_x.grad, part.mode.outer, part)).norm()),
        "dw": float((gradient[box.valid_slices] - whole_w.grad[box.slices]).norm()),
    }
    gradient[box.valid_slices] = 0
    return errors | {"padding": float(gradient.norm())}


@cache
def losses_in(world: int) -> list[Found]:
    return run_world(world, cut_losses, [cut for cut in CUTS if cut.tensor == world])


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_sharded_vocabulary_gives_the_same_loss_and_gradients(
    cut: ModeSize, words: int, chunk: int | None
) -> None:
    for rank, found in enumerate(losses_in(cut.tensor)):
        wrong = {name: e for name, e in found[cut, words, chunk].items() if not e <= 1e-12}
        assert not wrong, f"rank {rank}: {wrong}"
