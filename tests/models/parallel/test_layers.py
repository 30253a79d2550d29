"""Each layer in every mode against the same formula on unsharded tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.parallel.collectives import Axis, Traffic
from models.parallel.context import ParallelContext
from models.parallel.layers import Linear, PositionEmbedding, ShardedModule, TokenEmbedding
from models.parallel.mode import ActivationSharding
from models.parallel.norm import LayerNorm, ShardedLayerNorm
from tests.support.local_shards import piece, summed
from tests.support.mode_sizes import ModeSize, full_mode_sizes
from tests.support.training import TrainingCase, open_partition, process_group
from tests.support.worlds import run_world

SAMPLES, LENGTH, HIDDEN, OUT, WORDS = 8, 3, 20, 28, 29
TOKENS = SAMPLES * LENGTH

Errors = dict[str, float]
Found = dict[
    tuple[ModeSize, bool], dict[str, Errors]
]  # by mode size and keep_gathers, then by layer


def error(found: Tensor, wanted: Tensor) -> float:
    """Return the relative error ||a - b|| / ||b||."""
    assert found.shape == wanted.shape, f"{found.shape}, wanted {wanted.shape}"
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fill(module: ShardedModule) -> dict[str, Tensor]:
    """Draw unsharded parameters, fill the module with its shards, and padding with zeros."""
    whole = {}
    for seed, (name, box) in enumerate(module.shards.items()):
        whole[name] = noise(*box.shape, seed=10 + seed).requires_grad_()
        with torch.no_grad():
            held = module.get_parameter(name).zero_()
            held[box.valid_slices] = whole[name][box.slices]
    return whole


def compare(
    module: ShardedModule,
    call: Callable[[], tuple[Tensor, Tensor | None]],
    reference: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor | None]],
    place: tuple[ActivationSharding, ActivationSharding],
) -> Errors:
    """Return the relative errors of the output and of the gradients of input and parameters.

    ``reference`` returns the unsharded output and input (None: no gradient of the input).
    """
    part, whole = module.parallel, fill(module)
    y, x = call()
    wanted_y, wanted_x = reference(whole)
    push = noise(*wanted_y.shape, seed=1)
    wanted_y.backward(push)
    y.backward(piece(push, place[1], part))
    errors = {"output": error(y.detach(), piece(wanted_y.detach(), place[1], part))}
    if x is not None and wanted_x is not None:
        assert x.grad is not None
        assert wanted_x.grad is not None
        errors["input"] = error(x.grad, piece(wanted_x.grad, place[0], part))
    for name, box in module.shards.items():
        gradient, wanted = module.get_parameter(name).grad, whole[name].grad
        assert gradient is not None
        assert wanted is not None
        found = summed(gradient, box, part)
        if 0 not in box.size:
            errors[name] = error(found[box.valid_slices], wanted[box.slices])
        found[box.valid_slices] = 0
        errors[f"padding of {name}"] = float(found.norm())
    return errors


def linear(part: ParallelContext, direction: str) -> Errors:
    """Check y = x @ w + b."""
    mode = part.mode
    up = direction == "up"
    n_in, n_out = (HIDDEN, OUT) if up else (OUT, HIDDEN)
    place = (mode.outer, mode.inner) if up else (mode.inner, mode.outer)
    layer = Linear(part, mode.up if up else mode.down, n_in, n_out, std=1.0)
    whole_x = noise(TOKENS, n_in, seed=0).requires_grad_()
    x = piece(whole_x.detach(), place[0], part).requires_grad_()
    return compare(
        layer,
        lambda: (layer(x), x),
        lambda whole: (whole_x @ whole["weight"] + whole["bias"], whole_x),
        place,
    )


def lookup(part: ParallelContext) -> Errors:
    """Check the embedding of random words; word 0 is frequent, the last word rare."""
    ids = torch.randint(WORDS, (TOKENS,), generator=torch.Generator().manual_seed(2))
    ids[:9] = 0
    table = TokenEmbedding(part, WORDS, HIDDEN, std=1.0)
    return compare(
        table,
        lambda: (table(ids), None),
        lambda whole: (F.embedding(ids, whole["weight"]), None),
        (part.mode.outer, part.mode.outer),
    )


def positions(part: ParallelContext) -> Errors:
    layer = PositionEmbedding(part, LENGTH + 2, HIDDEN, std=1.0)
    return compare(
        layer,
        lambda: (layer(SAMPLES, LENGTH), None),
        lambda whole: (whole["weight"][:LENGTH].repeat(SAMPLES, 1), None),
        (part.mode.outer, part.mode.outer),
    )


def norm(part: ParallelContext) -> Errors:
    layer = LayerNorm(part, HIDDEN, eps=1e-5)
    whole_x = noise(TOKENS, HIDDEN, seed=3).add_(2.0).requires_grad_()
    x = piece(whole_x.detach(), part.mode.outer, part).requires_grad_()
    return compare(
        layer,
        lambda: (layer(x), x),
        lambda whole: (F.layer_norm(whole_x, (HIDDEN,), whole["weight"], whole["bias"]), whole_x),
        (part.mode.outer, part.mode.outer),
    )


LAYERS: dict[str, Callable[[ParallelContext], Errors]] = {
    "up": lambda part: linear(part, "up"),
    "down": lambda part: linear(part, "down"),
    "lookup": lookup,
    "positions": positions,
    "norm": norm,
}


def run_layers(
    rank: int, size: int, all_cuts: list[ModeSize]
) -> dict[tuple[ModeSize, bool], dict[str, Errors]]:
    found = {}
    for cut in all_cuts:
        for keep in (False, True):
            run = TrainingCase(**cut._asdict(), dtype=torch.float64, keep_gathers=keep)
            part = open_partition(run, rank)
            found[cut, keep] = {name: layer(part) for name, layer in LAYERS.items()}
    return found


@cache
def errors_in(world: int) -> list[Found]:
    return run_world(world, run_layers, [cut for cut in full_mode_sizes() if cut.tensor == world])


@pytest.mark.parametrize("keep", [False, True], ids=["gather again", "keep gathers"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("cut", full_mode_sizes(), ids=str)
def test_layer_equals_its_unsharded_formula(cut: ModeSize, layer: str, keep: bool) -> None:
    for rank, found in enumerate(errors_in(cut.tensor)):
        wrong = {name: e for name, e in found[cut, keep][layer].items() if not e <= 1e-13}
        assert not wrong, f"rank {rank}: {wrong}"


def norm_far_from_zero(rank: int, size: int) -> Errors:
    """Compare float32 with float64 at mean 100, deviation 1."""
    group = process_group(tuple(range(size)))
    axis = Axis(name="c", size=size, index=rank, group=group, traffic=Traffic())
    x, push = noise(64, 96, seed=4).float() + 100, noise(64, 96, seed=5).float()
    w, b = noise(96, seed=6).float(), noise(96, seed=7).float()
    exact = [t.double().requires_grad_() for t in (x, w, b)]
    y = F.layer_norm(exact[0], (96,), exact[1], exact[2])
    y.backward(push.double())
    here = slice(rank * 96 // size, (rank + 1) * 96 // size)
    mine = [x[:, here].clone(), w[here].clone(), b[here].clone()]
    found = ShardedLayerNorm.apply(*[t.requires_grad_() for t in mine], axis, 1e-5)
    found.backward(push[:, here])
    errors = {"y": error(found.detach(), y.detach()[:, here])}
    for name, ours, theirs in zip("xwb", mine, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        errors[name] = error(ours.grad, theirs.grad[..., here])
    calls = sum(axis.traffic.calls.values())
    return errors | {"exchanges": calls}


def test_sharded_layer_norm_is_precise_far_from_zero() -> None:
    """Here E[x^2] - E[x]^2 in float32 has an error of 6e-4, torch's float32 norm of some 4e-6."""
    for errors in run_world(3, norm_far_from_zero):
        assert errors.pop("exchanges") == 2  # one forward, one backward
        assert max(errors.values()) <= 1e-5, errors


def test_gradients_of_biases_and_norms_are_summed_in_the_parameter_dtype() -> None:
    """bf16 cannot represent 1 + 2^-9, so a sum over tokens in bf16 would be wrong by 2^-9."""
    part = open_partition(TrainingCase(compute=torch.bfloat16), 0)
    layer = Linear(part, part.mode.up, 4, 4, std=1.0)
    y = layer(torch.zeros(513, 4, dtype=torch.bfloat16, requires_grad=True))
    y.backward(torch.full_like(y, 2**-9))
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [513 * 2**-9] * 4
