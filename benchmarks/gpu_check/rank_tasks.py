"""The functions that a check runs on forked processes, by name."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import train_gpt
from benchmarks.gpu_check import head_speed, rates, step_profile
from benchmarks.gpu_check.sizes import CheckSizes
from engine.world.processor import usable_cores


def train(
    rank: int, size: int, arguments: Sequence[str], port: int, device: str, threads: int
) -> None:
    """Train as `train_gpt.py ARGUMENTS` does, on one of ``size`` ranks started by hand; a
    single rank needs no port."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(threads)
    rank_arguments = [
        "--host=127.0.0.1",
        f"--port={port}",
        f"--rank={rank}",
        f"--world_size={size}",
    ]
    code = train_gpt.main([*arguments, *(rank_arguments if size > 1 else [])])
    if code:
        raise RuntimeError(f"train_gpt.py failed with exit code {code}; see the case's log")


def machine(rank: int, size: int, sizes: CheckSizes) -> dict[str, Any]:
    """Return the versions of Python and torch, and the device's properties."""
    versions: dict[str, Any] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": "cpu",
        "memory": None,
        "cores": usable_cores(),
    }
    if sizes.device == "cuda":
        about = torch.cuda.get_device_properties(0)
        versions |= {
            "device": about.name,
            "memory": about.total_memory,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "cudnn": torch.backends.cudnn.version(),
        }
    return versions


def matmul(rank: int, size: int, sizes: CheckSizes) -> list[dict[str, Any]]:
    return rates.matmul_rates(sizes)


def head(rank: int, size: int, sizes: CheckSizes) -> list[dict[str, Any]]:
    return head_speed.measure_head(sizes)


def large(rank: int, size: int, sizes: CheckSizes) -> dict[str, Any]:
    return step_profile.measure_large(sizes)


def attention(rank: int, size: int, sizes: CheckSizes) -> dict[str, Any]:
    return rates.attention(sizes)


def profile(rank: int, size: int, sizes: CheckSizes, trace: Path) -> dict[str, Any]:
    return step_profile.profile_step(sizes, trace)
