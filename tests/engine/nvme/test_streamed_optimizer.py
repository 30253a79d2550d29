"""A streamed optimizer gives the bits of a resident one, in bounded memory."""

from __future__ import annotations

import gc
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.errors import RunError, UserError
from engine.nvme.direct_io import DirectFile
from engine.nvme.disk import open_disk
from engine.nvme.offloaded_weights import WeightsOnDisk
from engine.nvme.page_buffers import Buffer
from tests.engine.nvme.support import (
    OPTIMIZERS,
    SHAPES,
    build,
    kinds,
    parameters,
    read_states,
    set_gradients,
    streamed,
)


def assert_equal(ours: dict[str, nn.Parameter], theirs: dict[str, nn.Parameter]) -> None:
    for name in SHAPES:
        assert torch.equal(ours[name], theirs[name]), name


def assert_states(found: dict[str, dict[str, Tensor]], resident: torch.optim.Optimizer) -> None:
    """Assert that ``found`` equals the states of a resident optimizer, by name."""
    for group in resident.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            expected = resident.state[parameter]
            assert found[name].keys() == expected.keys()
            for key, value in expected.items():
                assert found[name][key].shape == value.shape
                assert torch.equal(found[name][key], value), (name, key)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates_give_the_same_bits_as_a_resident_optimizer(
    tmp_path: Path, optimizer: str, dtype: torch.dtype, kind: str
) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    resident = build(optimizer, theirs)
    with (
        open_disk(tmp_path, "job") as disk,
        streamed(disk, optimizer, ours, library=kind, memory=2**19) as stream,
    ):
        assert read_states(stream) == {}
        for step in range(1, 6):
            set_gradients(step, ours, theirs)
            for one in (stream, resident):
                for group in one.param_groups:
                    group["lr"] = 1e-2 / step
                one.step()
            if step == 3:
                assert_states(read_states(stream), resident)
        assert_equal(ours, theirs)
        assert_states(read_states(stream, reverse=True), resident)
        assert not stream.inner.state, "states stayed in memory"


@kinds
def test_states_are_loaded_into_other_groups(tmp_path: Path, kind: str) -> None:
    """States move from a resident optimizer to a streamed one, and to one with larger buffers."""
    ours, theirs = parameters(), parameters()
    resident = build("adamw", theirs)
    asked: list[str] = []

    def find(name: str) -> dict[str, Any]:
        asked.append(name)
        state: dict[str, Any] = resident.state[theirs[name]]
        return state

    def both_step(one: Any, step: int) -> None:
        set_gradients(step, ours, theirs)
        one.step()
        resident.step()

    both_step(build("adamw", ours), 1)
    with (
        open_disk(tmp_path, "first") as disk,
        streamed(disk, "adamw", ours, library=kind, memory=2**19) as first,
    ):
        first.load_states(find)
        assert sorted(asked) == sorted(SHAPES)
        assert_states(read_states(first), resident)
        both_step(first, 2)
        saved = read_states(first)
    with (
        open_disk(tmp_path, "second") as disk,
        streamed(disk, "adamw", ours, library=kind, memory=2**20) as second,
    ):
        second.load_states(saved.__getitem__)
        both_step(second, 3)
        both_step(second, 4)
        assert_states(read_states(second), resident)
    assert_equal(ours, theirs)


def resident_bytes() -> int:
    """Return the bytes of all buffers and of tensors outside them, created since gc.freeze()."""
    alive = gc.get_objects()
    buffers = [one for one in alive if type(one) is Buffer]
    spans = [(one.tensor(0, 1).data_ptr(), one.size) for one in buffers]
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in alive
        if type(one) is Tensor
    }
    outside = sum(
        size
        for start, size in storages.items()
        if not any(first <= start < first + length for first, length in spans)
    )
    return outside + sum(length for _, length in spans)


@kinds
def test_memory_is_bounded_with_states_of_ten_times_the_bound(tmp_path: Path, kind: str) -> None:
    """This includes the first step, which creates the states."""
    memory, peaks = 2**18, list[int]()
    long = {"w": nn.Parameter(torch.zeros(340_000)), "b": nn.Parameter(torch.zeros(70))}
    for parameter in long.values():
        parameter.grad = torch.ones_like(parameter)
    assert sum(2 * parameter.nbytes for parameter in long.values()) > 10 * memory
    gc.collect()
    gc.freeze()
    try:
        with (
            open_disk(tmp_path, "job") as disk,
            streamed(disk, "adamw", long, library=kind, memory=memory) as optimizer,
        ):
            update = optimizer.inner.step

            def watched() -> None:
                update()
                peaks.append(resident_bytes())

            optimizer.inner.step = watched  # type: ignore[method-assign, assignment]
            for _ in range(2):
                optimizer.step()
                peaks.append(resident_bytes())
    finally:
        gc.unfreeze()
    views = 2 * long["w"].nbytes  # of parameter and gradient, in pieces
    assert memory // 2 < max(peaks) - views <= memory


def test_a_parameter_without_gradient_keeps_its_bits_and_states(tmp_path: Path) -> None:
    ours, theirs = parameters(), parameters()
    resident = build("adamw", theirs)
    with open_disk(tmp_path, "job") as disk, streamed(disk, "adamw", ours) as optimizer:
        for step in range(4):
            set_gradients(step, ours, theirs)
            if step % 2:
                for model in (ours, theirs):
                    model["weight"].grad = model["long"].grad = None
            optimizer.step()
            resident.step()
        assert_states(read_states(optimizer), resident)
    assert_equal(ours, theirs)


@pytest.mark.gpu
def test_parameters_on_a_gpu_and_their_states_stay_on_the_gpu(tmp_path: Path) -> None:
    """Biases and norms are not offloaded: nor are their states and the count of steps."""

    def some_on_gpu() -> dict[str, nn.Parameter]:
        moved = {name: p.detach().cuda() for name, p in parameters().items() if p.dim() == 1}
        return parameters() | {name: nn.Parameter(p) for name, p in moved.items()}

    ours, theirs = some_on_gpu(), some_on_gpu()
    resident = build("adamw", theirs)
    with open_disk(tmp_path, "job") as disk, streamed(disk, "adamw", ours) as optimizer:
        for step in range(1, 4):
            set_gradients(step, ours, theirs)
            optimizer.step()
            resident.step()
        saved = read_states(optimizer)
        optimizer.load_states(saved.__getitem__)
        set_gradients(4, ours, theirs)
        optimizer.step()
        resident.step()
    for name in SHAPES:
        assert torch.equal(ours[name], theirs[name]), name


def test_an_indivisible_update_gets_whole_parameters(tmp_path: Path) -> None:
    ours = parameters()
    with open_disk(tmp_path, "job") as disk:
        with streamed(disk, "adamw", ours, divisible=False, memory=2**22) as optimizer:
            shapes: list[tuple[int, ...]] = []
            inner = optimizer.inner
            update = inner.step

            def watched() -> None:
                shapes.extend(
                    tuple(p.shape) for group in inner.param_groups for p in group["params"]
                )
                update()

            inner.step = watched  # type: ignore[method-assign, assignment]
            set_gradients(1, ours)
            optimizer.step()
        assert sorted(shapes) == sorted(SHAPES.values())
        (disk.folder / "states").unlink()
        with (
            pytest.raises(UserError, match="for long, which is updated as a whole"),
            streamed(disk, "adamw", ours, divisible=False),
        ):
            pass


@kinds
def test_offloaded_weights_are_updated_on_the_disk(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow to write: a read of a weight waits for its write."""
    write = DirectFile._write

    def slowly(file: DirectFile, offset: int, memory: memoryview) -> None:
        time.sleep(0.02)
        write(file, offset, memory)

    monkeypatch.setattr(DirectFile, "_write", slowly)
    ours, theirs = parameters(), parameters()
    resident = build("adamw", theirs)
    with open_disk(tmp_path, "job") as disk:
        weights = WeightsOnDisk(disk=disk, prefetch_bytes=2**18)
        kept = {name: p for name, p in ours.items() if p.dim() > 1 or name == "long"}
        for name, parameter in kept.items():
            ours[name] = nn.Parameter(torch.full((), torch.nan).expand(parameter.shape))
            weights.add(ours[name])
        for name, parameter in kept.items():
            weights.put(ours[name], parameter.detach())
        with streamed(disk, "adamw", ours, library=kind, weights=weights) as optimizer:
            for step in range(1, 5):
                set_gradients(step, ours, theirs)
                optimizer.step()
                resident.step()
                for name in (*kept, *reversed(kept)):
                    assert torch.equal(weights.get(ours[name]), theirs[name]), (step, name)
            assert_states(read_states(optimizer), resident)
        assert torch.equal(ours["norm"], theirs["norm"])
        weights.close()


def test_a_removed_folder_fails_the_step_before_the_update(tmp_path: Path) -> None:
    ours = parameters()
    with open_disk(tmp_path, "job") as disk, streamed(disk, "adamw", ours) as optimizer:
        set_gradients(1, ours)
        optimizer.step()
        before = ours["weight"].clone()
        shutil.rmtree(disk.folder)
        with pytest.raises(RunError, match="states was removed while the run used it"):
            optimizer.step()
        assert torch.equal(ours["weight"], before)
