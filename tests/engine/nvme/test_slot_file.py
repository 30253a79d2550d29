"""Both I/O libraries: slots are read back, and lost data is detected."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from engine.errors import RunError, UserError
from engine.nvme.disk import Disk, open_disk
from engine.nvme.io_libraries import tensornvme
from engine.nvme.page_buffers import LINE, PAGE, Buffer
from engine.nvme.slot_file import SlotFile, open_slot_file
from tests.engine.nvme.support import kinds, mounted

SIZES = [3 * PAGE, PAGE, 1025 * PAGE, PAGE, 2 * PAGE]
LARGEST = max(SIZES)


@contextmanager
def opened(root: Path, kind: str, sizes: list[int]) -> Iterator[tuple[Disk, SlotFile]]:
    with open_disk(root, "job") as disk:
        slots = open_slot_file(disk, sizes, kind)
        try:
            yield disk, slots
        finally:
            slots.close()


def fill(buffer: Buffer, slot: int, turn: int) -> torch.Tensor:
    """Return the payload of a slot."""
    payload = buffer.tensor(LINE, SIZES[slot] - 2 * LINE)
    return payload.copy_(torch.arange(len(payload)).mul_(slot + 7).add_(turn).to(torch.uint8))


def put_all(slots: SlotFile, buffer: Buffer) -> None:
    """Write two slots, one after the other."""
    for slot in range(2):
        slots.put(slot, buffer)
        slots.wait()


def take_all(slots: SlotFile, buffer: Buffer) -> None:
    for slot in range(2):
        slots.take(slot, buffer)
        slots.wait()


def put_and_take(slots: SlotFile, buffer: Buffer) -> None:
    put_all(slots, buffer)
    take_all(slots, buffer)


@kinds
def test_take_returns_the_bytes_of_the_last_put(tmp_path: Path, kind: str) -> None:
    with opened(tmp_path, kind, SIZES) as (disk, slots):
        buffers = [Buffer(LARGEST) for _ in SIZES]
        path = disk.folder / "states"
        for turn in range(4):
            for slot, buffer in enumerate(buffers):
                if turn:
                    buffer.tensor(0, LARGEST).fill_(255)
                    slots.take(slot, buffer)
                    slots.wait()
                    found = buffer.tensor(LINE, SIZES[slot] - 2 * LINE).clone()
                    assert torch.equal(found, fill(buffer, slot, turn - 1))
                fill(buffer, slot, turn)
                slots.put(slot, buffer)
            slots.wait()
        assert path.stat().st_size <= sum(SIZES) + PAGE


@kinds
def test_concurrent_reads_and_writes_do_not_grow_the_file(tmp_path: Path, kind: str) -> None:
    """Reads and writes have the order of an optimizer. TensorNVMe's free list alone would grow with
    each round."""
    with opened(tmp_path, kind, SIZES) as (disk, slots):
        buffers = [Buffer(LARGEST) for _ in SIZES]
        for slot, buffer in enumerate(buffers):
            fill(buffer, slot, 0)
            slots.put(slot, buffer)
        slots.wait()
        for turn in range(10):
            slots.take(0, buffers[0])
            for slot, buffer in enumerate(buffers):
                slots.wait()
                if slot:
                    slots.put(slot - 1, buffers[slot - 1])
                if slot + 1 < len(SIZES):
                    slots.take(slot + 1, buffers[slot + 1])
                found = buffer.tensor(LINE, SIZES[slot] - 2 * LINE).clone()
                assert torch.equal(found, fill(buffer, slot, turn))
                fill(buffer, slot, turn + 1)
            slots.wait()
            slots.put(len(SIZES) - 1, buffers[-1])
            slots.wait()
        assert (disk.folder / "states").stat().st_size <= sum(SIZES) + PAGE


@kinds
@pytest.mark.parametrize("where", ["start", "end", "all", "older"])
def test_lost_data_is_detected(tmp_path: Path, kind: str, where: str) -> None:
    sizes = [4 * PAGE, 4 * PAGE]
    with opened(tmp_path, kind, sizes) as (disk, slots):
        buffer, path = Buffer(4 * PAGE), disk.folder / "states"
        for turn in range(2):
            if turn:
                before = path.read_bytes()
                take_all(slots, buffer)
            put_all(slots, buffer)
        with path.open("r+b") as file:
            if where == "older":
                file.write(before)
            else:
                file.seek({"start": 0, "end": 8 * PAGE - LINE, "all": 0}[where])
                file.write(bytes(8 * PAGE if where == "all" else LINE))
        with pytest.raises(RunError, match=r"states: part \d is corrupt"):
            take_all(slots, buffer)


@kinds
def test_a_full_disk_is_detected(tmp_path: Path, kind: str) -> None:
    """Space is reserved first. If the file system loses the reservation, writes fail, and with
    TensorNVMe they fail without an error."""
    with mounted(tmp_path / "disk", "size=1m") as root, open_disk(root, "job") as disk:
        reserve = disk.reserve

        def promise(name: str, size: int) -> Path:
            path = reserve(name, 0)
            with path.open("r+b") as file:
                file.truncate(size)
            return path

        disk.reserve = promise  # type: ignore[method-assign]
        slots, buffer = open_slot_file(disk, [2**20, 2**20], kind), Buffer(2**20)
        message = r"No space left on device|is corrupt"
        with closing(slots), pytest.raises(RunError, match=message):
            put_and_take(slots, buffer)


@kinds
def test_a_read_that_transfers_no_data_is_detected(tmp_path: Path, kind: str) -> None:
    """The buffer still contains the stamps of the last write."""
    with opened(tmp_path, kind, [PAGE]) as (disk, slots):
        buffer = Buffer(PAGE)
        slots.put(0, buffer)
        slots.wait()
        buffer.tensor(LINE, 100).fill_(99)
        with (disk.folder / "states").open("r+b") as file:
            file.truncate(0)
        slots.take(0, buffer)
        with pytest.raises(RunError, match=r"the file was truncated|is corrupt"):
            slots.wait()


@kinds
def test_transfers_bypass_the_page_cache(tmp_path: Path, kind: str) -> None:
    with opened(tmp_path, kind, [PAGE]) as (disk, _):
        path = disk.folder / "states"
        try:
            os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
        except OSError:
            pytest.skip("this file system has no direct transfers")
        flags = [
            fcntl.fcntl(int(link.name), fcntl.F_GETFL)
            for link in Path("/proc/self/fd").iterdir()
            if link.exists() and link.readlink() == path
        ]
        assert flags
        assert all(flag & os.O_DIRECT for flag in flags)


def test_a_failed_read_is_reported_in_one_line(tmp_path: Path) -> None:
    with opened(tmp_path, "threads", [2 * PAGE]) as (disk, slots):
        buffer, path = Buffer(2 * PAGE), disk.folder / "states"
        slots.put(0, buffer)
        slots.wait()
        with path.open("r+b") as file:
            file.truncate(PAGE)
        slots.take(0, buffer)
        with pytest.raises(RunError) as failure:
            slots.wait()
        assert str(failure.value) == f"{path}: read failed: the file was truncated; check the disk"


def test_a_store_that_is_not_installed_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensornvme, "problem", lambda: "needs TensorNVMe")
    with open_disk(tmp_path, "job") as disk:
        with pytest.raises(UserError, match=r"zero.nvme_store='tensornvme' needs TensorNVMe"):
            open_slot_file(disk, SIZES, "tensornvme")
        open_slot_file(disk, SIZES).close()  # threads


@pytest.mark.skipif(tensornvme.problem() is not None, reason="TensorNVMe does not work here")
def test_the_fallback_of_io_uring_is_libaio_and_then_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tensornvme._allows_aio():
        pytest.skip("no libaio here")
    monkeypatch.setattr(tensornvme, "_allows_uring", lambda: False)
    assert tensornvme._backend() == "aio"
    test_take_returns_the_bytes_of_the_last_put(tmp_path, "tensornvme")
    monkeypatch.setattr(tensornvme, "_allows_aio", lambda: False)
    problem = tensornvme.problem()
    assert problem is not None
    assert problem.endswith("this kernel allows neither")


FORBIDDEN = """
import ctypes, struct

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

# load the call's number; if it is io_uring_setup, fail with EPERM; else allow
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
program = Program(len(steps), b"".join(struct.pack("HBBI", *step) for step in steps))
process = ctypes.CDLL(None)
assert process.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
assert process.prctl(22, 2, ctypes.byref(program)) == 0  # a filter of system calls
from engine.nvme.io_libraries import tensornvme
print(tensornvme._allows_uring(), tensornvme.problem(), tensornvme._backend())
"""


@pytest.mark.skipif(tensornvme.problem() is not None, reason="TensorNVMe does not work here")
def test_io_uring_is_not_tried_in_a_container_that_forbids_io_uring() -> None:
    """TensorNVMe would crash the process."""
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "False None aio\n"), done.stderr
