"""Transfers by TensorNVMe 0.1.0 (HPC-AI Tech): io_uring, or libaio if the kernel forbids that.

Its limits, and how they are handled:

- It does not check the result of a transfer: SlotFile stamps slots, and space is reserved first.
- It drops a tensor that was read and frees its space: each slot is written back.
- Its free list leaks space that is merged with the last place of the file: a slot at the end is
  never read.
- It transfers the whole storage of a tensor: tensors of a buffer have separate storages.
- It uses the page cache: its file is switched to direct I/O after opening.
- Its probe for a queue crashes on some kernels without one: a system call checks first.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from engine.nvme.page_buffers import PAGE, Buffer

DEPTH = 16
"""Maximum transfers in progress; a slot file has two."""

END = "end"


class TensorNVMeTransfers:
    """Transfers of slots by TensorNVMe, which takes the slot number as a key and chooses the slot's
    place in the file."""

    def __init__(self, path: Path, sizes: Sequence[int], backend: str) -> None:
        from tensornvme._C import Offloader

        self._path, self._sizes = path, sizes
        self._fresh = set(range(len(sizes)))
        self._end = Buffer(PAGE)
        self._offloader = Offloader(str(path), DEPTH, backend)
        _make_direct(path)

    def read(self, slot: int, buffer: Buffer) -> None:
        assert not self._fresh, "a slot was read before all slots were written"
        self._offloader.async_read(buffer.tensor(0, self._sizes[slot]), str(slot))

    def write(self, slot: int, buffer: Buffer) -> None:
        self._offloader.async_write(buffer.tensor(0, self._sizes[slot]), str(slot))
        if slot in self._fresh:
            self._fresh.remove(slot)
            if not self._fresh:
                self._offloader.async_write(self._end.tensor(0, PAGE), END)

    def wait(self) -> None:
        self._offloader.synchronize()

    def close(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        self._path.touch()  # TensorNVMe prints an error if it cannot remove its file
        del self._offloader


def problem() -> str | None:
    """Return why TensorNVMe does not work on this machine, in words that follow
    "zero.nvme_store=..."; None if it works."""
    if importlib.util.find_spec("tensornvme") is None:
        return "needs TensorNVMe, which is not built here: ./run.sh setup nvme"
    try:
        backend = _backend()
    except ImportError:
        return "needs TensorNVMe built for this torch: ./run.sh setup nvme"
    return None if backend else "needs io_uring or libaio, and this kernel allows neither"


def open_transfers(path: Path, sizes: Sequence[int]) -> TensorNVMeTransfers:
    """Open ``path`` as a file of slots of ``sizes`` bytes."""
    backend = _backend()
    assert backend is not None, "call problem() first"
    return TensorNVMeTransfers(path, sizes, backend)


def _backend() -> str | None:
    """Return the first backend that TensorNVMe was built with and that the kernel allows."""
    from tensornvme._C import get_backends

    allowed = {"uring": _allows_uring, "aio": _allows_aio}
    return next((name for name in allowed if name in get_backends() and allowed[name]()), None)


def _allows_uring() -> bool:
    """Return whether io_uring works: containers and some kernels forbid it."""
    descriptor = _system_call(425, 2, ctypes.create_string_buffer(120))  # io_uring_setup
    if descriptor >= 0:
        os.close(descriptor)
    return descriptor >= 0


def _allows_aio() -> bool:
    """Return whether libaio works: all queues of the machine may be in use (fs.aio-max-nr)."""
    numbers = {"x86_64": (206, 207), "aarch64": (0, 1)}  # io_setup, io_destroy
    if platform.machine() not in numbers:
        return False
    setup, destroy = numbers[platform.machine()]
    queue = ctypes.c_ulong()
    allowed = _system_call(setup, DEPTH, ctypes.byref(queue)) == 0
    if allowed:
        _system_call(destroy, queue)
    return allowed


def _system_call(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None).syscall(number, *arguments))


def _make_direct(path: Path) -> None:
    """Set O_DIRECT on the descriptors of this process that have ``path`` open."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            if link.readlink() == path.resolve():
                flags = fcntl.fcntl(int(link.name), fcntl.F_GETFL)
                fcntl.fcntl(int(link.name), fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:  # closed by now, or a file system without direct I/O
            continue
