"""Optimizers, compared with torch's unfused ones and with the published update rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine import discover
from engine.config.sections.optimizer import OptimizerSettings
from engine.optim.parameter_groups import NamedParameter, decay_groups
from engine.optim.registry import build_optimizer
from models.parameters import ParameterKind

OPTIMIZERS = discover.module_names("engine.optim.optimizers")
TORCH: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
SHAPES: dict[ParameterKind, tuple[int, ...]] = {
    "linear": (7, 5),
    "bias": (5,),
    "norm": (7,),
    "embedding": (11, 7),
}


def settings(kind: str, **changes: Any) -> OptimizerSettings:
    return OptimizerSettings(**{"type": kind, "lr": 1e-2, "weight_decay": 0.1, **changes})


def parameters(dtype: torch.dtype = torch.float32) -> list[NamedParameter]:
    generator = torch.Generator().manual_seed(1)
    return [
        NamedParameter(kind, nn.Parameter(torch.randn(shape, generator=generator).to(dtype)), kind)
        for kind, shape in SHAPES.items()
    ]


def gradients(steps: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        [torch.randn(shape, generator=generator) for shape in SHAPES.values()] for _ in range(steps)
    ]


def run(optimizer: torch.optim.Optimizer, named: list[NamedParameter], steps: int = 20) -> None:
    for step in gradients(steps):
        for parameter, gradient in zip(named, step, strict=True):
            parameter.parameter.grad = gradient.to(parameter.parameter.dtype)
        optimizer.step()


def distance(a: list[NamedParameter], b: list[NamedParameter]) -> float:
    return max(
        float((x.parameter.detach() - y.parameter.detach()).norm() / y.parameter.detach().norm())
        for x, y in zip(a, b, strict=True)
    )


def plain(
    kind: str, named: list[NamedParameter], decayed: list[bool], **options: Any
) -> torch.optim.Optimizer:
    """Return torch's optimizer with one group per parameter, unfused."""
    groups = [
        {"params": [p.parameter], "weight_decay": 0.1 if decay else 0.0}
        for p, decay in zip(named, decayed, strict=True)
    ]
    return TORCH[kind](groups, **{"lr": 1e-2, **options})


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("decay", ["matrices", "all"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_fused_updates_equal_torchs_default_ones(kind, decay, dtype, tolerance):
    ours, theirs = parameters(dtype), parameters(dtype)
    options = {"momentum": 0.9} if kind == "sgd" else {"betas": (0.8, 0.95), "eps": 1e-6}
    optimizer = build_optimizer(settings(kind, decay=decay, **options), ours)
    assert all(group["fused"] for group in optimizer.param_groups)
    run(optimizer, ours)
    decayed = [decay == "all" or p.kind in ("linear", "embedding") for p in theirs]
    run(plain(kind, theirs, decayed, **options), theirs)
    assert distance(ours, theirs) < tolerance


def test_adam_decays_by_l2_and_adamw_decoupled():
    """With a zero gradient AdamW's decay shrinks weights; Adam's becomes a full signed step."""
    for kind, expected in (("adamw", 2.0 * (1 - 1e-2 * 0.1)), ("adam", 2.0 - 1e-2)):
        parameter = nn.Parameter(torch.full((3, 3), 2.0))
        optimizer = build_optimizer(settings(kind), [NamedParameter("w", parameter, "linear")])
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert torch.allclose(parameter, torch.full((3, 3), expected), rtol=1e-5)


@pytest.mark.parametrize(("kind", "decayed"), [("adamw", 2), ("adam", 4), ("sgd", 4)])
def test_by_default_adamw_decays_matrices_and_the_others_all(kind, decayed):
    groups = decay_groups(settings(kind), parameters())
    assert groups[0]["weight_decay"] == 0.1
    assert len(groups[0]["params"]) == decayed
    assert all(group["weight_decay"] == 0.0 for group in groups[1:])
    assert sum(len(group["params"]) for group in groups) == len(SHAPES)


@pytest.mark.parametrize(
    ("decay", "decayed"),
    [
        ("linears", {"linear"}),
        ("matrices", {"linear", "embedding"}),
        ("weights", {"linear", "embedding", "norm"}),
        ("all", set(SHAPES)),
    ],
)
def test_decay_chooses_parameters_by_their_kind(decay, decayed):
    groups = decay_groups(settings("adamw", decay=decay), parameters())
    found = {name for group in groups if group["weight_decay"] for name, _ in group["params"]}
    assert found == decayed


def test_states_are_saved_by_name():
    named = parameters()
    state = build_optimizer(settings("adamw"), named).state_dict()
    names = [name for group in state["param_groups"] for name in group["param_names"]]
    assert sorted(names) == sorted(SHAPES)


def test_a_device_without_fused_kernels_uses_the_default_optimizer():
    parameter = nn.Parameter(torch.zeros(2, 2, device="meta"))
    optimizer = build_optimizer(settings("adamw"), [NamedParameter("w", parameter, "linear")])
    assert not optimizer.param_groups[0]["fused"]


def test_every_optimizer_is_compared_with_one_of_torch():
    """Add the optimizer of torch to TORCH for every new module."""
    assert set(OPTIMIZERS) == set(TORCH)
