"""The bytes that a linear layer sends in each mode: counted against a closed formula."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from math import prod

import pytest
import torch

from models.parallel.collectives import Traffic
from models.parallel.layers import Linear
from models.parallel.mode import ActivationSharding, LinearSharding, Mode
from models.parallel.registry import modes
from tests.support.mode_sizes import ModeSize, full_mode_sizes
from tests.support.training import TrainingCase, open_partition
from tests.support.worlds import run_world

T, H, INNER = 48, 24, 36  # tokens, hidden and inner features
CUTS = [*full_mode_sizes(), ModeSize("1d", 3, 1), ModeSize("2.5d", 4, 1)]
KINDS = [  # compute dtype, keep_gathers
    (torch.float32, False),
    (torch.float32, True),
    (torch.bfloat16, False),
]

Way = tuple[ModeSize, str, torch.dtype, bool]

FORWARD: dict[str, Callable[[int, int, int, int], float]] = {
    # (ranks, tokens, in, out) -> elements that a rank sends in an *up* layer's forward pass
    "serial": lambda p, t, i, o: 0,
    "1d": lambda p, t, i, o: (p - 1) / p * t * i,  # Korthikanti et al. 2022: an all-gather
    "2d": lambda p, t, i, o: (p**0.5 - 1) / p * (t * i + i * o),  # SUMMA: blocks of x and of w
    "3d": lambda p, t, i, o: (p ** (1 / 3) - 1) / p * (t * i + i * o + t * o),  # Bian et al. 2021
}


def formula(
    mode: Mode, product: LinearSharding, axes: dict[str, int], n_in: int, n_out: int, *, keep: bool
) -> tuple[Counter[str], Counter[str]]:
    """Return the elements that a rank sends in forward and in backward, by tensor.

    A gather of x [T, in] or of w [in, out], or a scatter of y [T, out], over n ranks sends n - 1
    times the shard of a rank. Backward scatters where forward gathers and vice versa, and gathers x
    and w again unless they were cached.
    """
    ranks = prod(axes.values())
    others = {
        "x": axes[product.gather_x.axis] - 1 if product.gather_x else 0,
        "w": axes[product.gather_w] - 1 if product.gather_w else 0,
        "y": axes[product.scatter_y] - 1 if product.scatter_y else 0,
    }
    w_pieces = prod(axes[axis] for axis in product.weight_in + product.weight_out)
    once = Counter(
        x=others["x"] * T * n_in // ranks,
        w=others["w"] * n_in * n_out // w_pieces,
        y=others["y"] * T * n_out // ranks,
    )
    again = Counter() if keep else Counter(x=once["x"], w=once["w"])
    return once, again + Counter(x=once["x"], y=once["y"], dw=once["w"])


def count(rank: int, size: int, cuts: list[ModeSize]) -> dict[Way, tuple[int, int]]:
    """Count bytes sent in forward and backward, by mode size, direction, dtype and keep_gathers."""
    found = {}
    for cut in cuts:
        for compute, keep in KINDS:
            traffic = Traffic()
            run = TrainingCase(**cut._asdict(), compute=compute, keep_gathers=keep)
            part = open_partition(run, rank, traffic)
            for direction in ("up", "down"):
                product, n_in, n_out, activation = ways(part.mode, direction)
                layer = Linear(part, product, n_in, n_out, std=1.0)
                rows = T // part.num_shards(activation.tokens)
                x = torch.ones(rows, n_in // part.num_shards(activation.hidden), dtype=compute)
                traffic.reset()
                y = layer(x.requires_grad_())
                forward = sum(traffic.bytes.values())
                y.backward(torch.ones_like(y))
                backward = sum(traffic.bytes.values()) - forward
                found[cut, direction, compute, keep] = forward, backward
    return found


def ways(mode: Mode, direction: str) -> tuple[LinearSharding, int, int, ActivationSharding]:
    up = direction == "up"
    return (mode.up, H, INNER, mode.outer) if up else (mode.down, INNER, H, mode.inner)


@cache
def counted(world: int) -> list[dict[Way, tuple[int, int]]]:
    return run_world(world, count, [cut for cut in CUTS if cut.tensor == world])


@pytest.mark.parametrize(("compute", "keep"), KINDS, ids=str)
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_linear_sends_the_bytes_of_the_formula(
    cut: ModeSize, direction: str, compute: torch.dtype, keep: bool
) -> None:
    mode = modes()[cut.mode]
    axes = mode.axes(cut.tensor, cut.depth)
    assert axes is not None
    product, n_in, n_out, _ = ways(mode, direction)
    forward, backward = formula(mode, product, axes, n_in, n_out, keep=keep)
    size = compute.itemsize
    weight_gradient = backward.pop("dw", 0) * 4  # reduced in the parameter dtype
    wanted = forward.total() * size, backward.total() * size + weight_gradient
    for found in counted(cut.tensor):
        assert found[cut, direction, compute, keep] == wanted


@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut.mode in FORWARD], ids=str)
def test_forward_traffic_equals_the_published_formula(cut: ModeSize) -> None:
    wanted = FORWARD[cut.mode](cut.tensor, T, H, INNER) * 4
    for found in counted(cut.tensor):
        assert found[cut, "up", torch.float32, False][0] == pytest.approx(wanted)
