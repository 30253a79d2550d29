"""Small disks, both I/O libraries, and parameters with gradients."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.nvme.disk import Disk
from engine.nvme.io_libraries import tensornvme
from engine.nvme.offloaded_weights import WeightsOnDisk
from engine.nvme.slot_file import LIBRARIES, open_slot_file
from engine.nvme.streamed_optimizer import StreamedOptimizer

_missing = tensornvme.problem()

kinds = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            marks=pytest.mark.skipif(
                kind == "tensornvme" and _missing is not None, reason=f"it {_missing}"
            ),
        )
        for kind in LIBRARIES
    ],
)

SHAPES = {"table": (300, 129), "weight": (100, 37), "bias": (37,), "norm": (3,), "long": (70_001,)}
"""No size divides another, and some are odd: vectorised loops end differently."""

OPTIMIZERS: dict[str, tuple[int, Any]] = {
    "adamw": (2, lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True)),
    "adam": (2, lambda groups: torch.optim.Adam(groups, lr=1e-2, weight_decay=0.1, fused=True)),
    "sgd": (1, lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9, fused=True)),
    "unfused adamw": (2, lambda groups: torch.optim.AdamW(groups, lr=1e-2)),
}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    return {
        name: nn.Parameter(torch.randn(shape, generator=draw).to(dtype))
        for name, shape in SHAPES.items()
    }


def build(kind: str, named: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Build an optimizer with two groups, whose order is not that of the parameters."""
    decayed = [(name, p) for name, p in named.items() if p.dim() > 1]
    spared = [(name, p) for name, p in named.items() if p.dim() == 1]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((spared, 0.0), (decayed, 0.3))
        if group
    ]
    optimizer: torch.optim.Optimizer = OPTIMIZERS[kind][1](groups)
    return optimizer


@contextmanager
def streamed(
    disk: Disk,
    optimizer: str,
    named: dict[str, nn.Parameter],
    *,
    library: str = "threads",
    memory: int = 2**18,
    weights: WeightsOnDisk | None = None,
    divisible: bool = True,
) -> Iterator[StreamedOptimizer]:
    opened = []

    def open_one(sizes: Sequence[int]) -> Any:
        opened.append(open_slot_file(disk, sizes, library))
        return opened[0]

    try:
        yield StreamedOptimizer(
            build(optimizer, named),
            states=OPTIMIZERS[optimizer][0],
            divisible=divisible,
            memory=memory,
            open_slot_file=open_one,
            weights=weights,
        )
    finally:
        for one in opened:
            one.close()


def read_states(
    optimizer: StreamedOptimizer, *, reverse: bool = False
) -> dict[str, dict[str, Tensor]]:
    """Return copies of all states, read in the order of the groups or against it."""
    states = list(optimizer.states())
    return {
        name: {key: tensor.read().clone() for key, tensor in of_parameter.items()}
        for name, of_parameter in (reversed(states) if reverse else states)
    }


def set_gradients(step: int, *models: dict[str, nn.Parameter]) -> None:
    """Set equal random gradients in all models."""
    draw = torch.Generator().manual_seed(step)
    for name, shape in SHAPES.items():
        gradient = torch.randn(shape, generator=draw)
        for model in models:
            model[name].grad = gradient.to(model[name])


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs at ``folder``; skip the test if this process is not allowed to."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"mount: {error}")
    if done.returncode:
        pytest.skip(done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
