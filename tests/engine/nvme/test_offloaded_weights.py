"""Weights on a disk: their values, and prefetching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.errors import UserError
from engine.nvme.direct_io import DirectFile
from engine.nvme.disk import open_disk
from engine.nvme.offloaded_weights import WeightsOnDisk
from engine.nvme.page_buffers import PAGE
from tests.engine.nvme.support import mounted

SIZES = (3, 1024, 5000, 1025, 70_000)


@contextmanager
def kept(root: Path, ahead: int) -> Iterator[tuple[WeightsOnDisk, list[nn.Parameter]]]:
    """Store weights; entry i of weight n is n + i."""
    with open_disk(root, "job") as disk:
        weights = WeightsOnDisk(disk=disk, prefetch_bytes=ahead)
        parameters = [nn.Parameter(torch.full((), torch.nan).expand(1, size)) for size in SIZES]
        for parameter in parameters:
            weights.add(parameter)
        try:
            for number, parameter in enumerate(parameters):
                weights.put(parameter, values(number, parameter))
            yield weights, parameters
        finally:
            weights.close()


def values(number: int, parameter: nn.Parameter) -> torch.Tensor:
    return torch.arange(number, number + parameter.numel(), dtype=torch.float32)[None]


def test_weights_are_read_in_any_order_and_outlive_later_reads(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    with kept(tmp_path, ahead=2 * PAGE) as (weights, parameters):
        held = []
        for _ in range(60):
            number = int(torch.randint(len(SIZES), (), generator=draw))
            held.append((number, weights.get(parameters[number])))
        for number, found in held:
            assert torch.equal(found, values(number, parameters[number]))


def test_a_prefetched_weight_is_discarded_by_a_write(tmp_path: Path) -> None:
    with kept(tmp_path, ahead=2**20) as (weights, parameters):
        for number in (0, 1, 2, 0, 1):
            weights.get(parameters[number])
        assert id(parameters[2]) in weights._reading
        weights.put(parameters[2], -values(2, parameters[2]))
        assert torch.equal(weights.get(parameters[2]), -values(2, parameters[2]))


def test_forward_and_backward_are_prefetched_from_the_second_step_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight is read from the disk before ``get`` asks for it, and only once."""
    order = [0, 1, 2, 3, 3, 2, 1, 0]
    read: list[int] = []
    begin = DirectFile.read

    def watched(file: DirectFile, offset: int, memory: torch.Tensor) -> object:
        read.append(offset)
        return begin(file, offset, memory)

    with kept(tmp_path, ahead=6 * PAGE) as (weights, parameters):
        monkeypatch.setattr(DirectFile, "read", watched)
        for step in range(3):
            for number in order:
                before = len(read)
                weights.get(parameters[number])
                if step:
                    assert weights._extents[id(parameters[number])].offset in read[:before]
            assert len(read) <= len(order) * (step + 1) + 4


def test_prefetching_stays_within_its_bytes(tmp_path: Path) -> None:
    with kept(tmp_path, ahead=3 * PAGE) as (weights, parameters):
        for _ in range(3):
            for parameter in parameters:
                weights.get(parameter)
                sizes = [len(transfer.memory) for transfer in weights._reading.values()]
                assert sum(sizes) <= 3 * PAGE or len(sizes) == 1
        assert any(sizes)


def test_a_disk_too_small_for_the_weights_is_rejected(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64k") as root, open_disk(root, "job") as disk:
        weights = WeightsOnDisk(disk=disk, prefetch_bytes=PAGE)
        parameter = nn.Parameter(torch.full((), torch.nan).expand(70_000))
        weights.add(parameter)
        with pytest.raises(UserError, match="a rank offloads 276 KiB and 64 KiB are free"):
            weights.put(parameter, torch.zeros(70_000))
        weights.close()
