"""A program for a network namespace of its own: bytes that training steps send, by our count and by
the loopback device's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from engine.training.trainer import Trainer
from models.parallel.collectives import Axis
from tests.support.runs import open_run
from tests.support.worlds import run_world

HEADERS = 14 + 20 + 32
"""Bytes that the device counts with every packet: Ethernet, IPv4, TCP with timestamps."""


def sent_by_device() -> tuple[int, int]:
    """Return bytes and packets that loopback has sent in this namespace."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            fields = numbers.split()
            return int(fields[8]), int(fields[9])
    raise AssertionError("no loopback device")


def measure(rank: int, size: int, config: Path, cases: list[dict[str, Any]]) -> list[Any]:
    return [_measure(rank, size, config, **case) for case in cases]


def _measure(
    rank: int, size: int, config: Path, overrides: list[str], library: bool
) -> dict[str, Any]:
    """Return the bytes of one step: this rank's count by axis, and the device's payload over all
    ranks. ``library``: use gloo's own collectives."""
    theirs = patch.object(Axis, "_uses_gloo_pairs", lambda self, x: False)
    with theirs if library else nullcontext():
        run = open_run(rank, size, config, overrides)
        run.step(1)  # connections are made
        # A busy machine sends a segment now and then twice
        return min((_measure_step(run, step) for step in (2, 3, 4)), key=lambda one: one["device"])


def _measure_step(run: Trainer, step: int) -> dict[str, Any]:
    run.world.traffic.reset()
    dist.barrier()
    before = sent_by_device()
    dist.barrier()
    run.step(step)
    dist.barrier()
    after = sent_by_device()
    dist.barrier()
    sent, packets = (now - then for now, then in zip(after, before, strict=True))
    counted: dict[str, int] = {}
    for (axis, _), number in run.world.traffic.bytes.items():
        counted[axis] = counted.get(axis, 0) + number
    return {"counted": counted, "device": sent - HEADERS * packets, "packets": packets}


def main(argv: Sequence[str]) -> None:
    """Measure cases: CONFIG, and cases as JSON [[ranks, [case, ...]], ...] -> results of all ranks,
    by case."""
    config, cases = Path(argv[0]), json.loads(argv[1])
    results = [
        list(zip(*run_world(ranks, measure, config, some), strict=True)) for ranks, some in cases
    ]
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
