"""TensorNVMe 0.1.0 (HPC-AI Tech): io_uring, or libaio where the kernel refuses that.

What it leaves to its caller, and where that is done:

- it looks at no result of a transfer: the store stamps slots, and the file is reserved before;
- a tensor that was read is forgotten, and its place is free: slots are written back;
- it places by its own free list, which at the end of the file leaks what is merged with the last
  place: a slot that is never read stays there;
- it moves a tensor's whole storage: a buffer's tensors have storages of their own;
- its file goes through the page cache: switched to direct once it is open;
- its queue is not probed safely where the kernel has none: asked for by system call before.
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
"""Transfers that may be under way; a store has two."""

END = "end"


class TensorNVMeTransfers:
    """A slot is a key; its place in the file is TensorNVMe's affair."""

    def __init__(self, path: Path, sizes: Sequence[int], backend: str) -> None:
        from tensornvme._C import Offloader

        self._path, self._sizes = path, sizes
        self._fresh = set(range(len(sizes)))
        self._end = Buffer(PAGE)
        self._offloader = Offloader(str(path), DEPTH, backend)
        _make_direct(path)

    def read(self, slot: int, buffer: Buffer) -> None:
        assert not self._fresh, "all slots are written before one is read"
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
        self._path.touch()  # it says so on standard output where it cannot remove its file
        del self._offloader


def problem() -> str | None:
    """Why it cannot be used here, after "zero.nvme_store=..."."""
    if importlib.util.find_spec("tensornvme") is None:
        return "needs TensorNVMe, which is not built here: ./run.sh setup nvme"
    try:
        backend = _backend()
    except ImportError:
        return "needs TensorNVMe built for this torch: ./run.sh setup nvme"
    return None if backend else "needs io_uring or libaio, and this kernel allows neither"


def open_transfers(path: Path, sizes: Sequence[int]) -> TensorNVMeTransfers:
    backend = _backend()
    assert backend is not None, "problem() was not asked"
    return TensorNVMeTransfers(path, sizes, backend)


def _backend() -> str | None:
    """The first that TensorNVMe was built with and the kernel gives us."""
    from tensornvme._C import get_backends

    allowed = {"uring": _allows_uring, "aio": _allows_aio}
    return next((name for name in allowed if name in get_backends() and allowed[name]()), None)


def _allows_uring() -> bool:
    """Containers often forbid it, and some kernels."""
    descriptor = _system_call(425, 2, ctypes.create_string_buffer(120))  # io_uring_setup
    if descriptor >= 0:
        os.close(descriptor)
    return descriptor >= 0


def _allows_aio() -> bool:
    """All of the machine's queues may be taken (fs.aio-max-nr)."""
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
    """O_DIRECT on whatever descriptor of this process has ``path`` open."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            if link.readlink() == path.resolve():
                flags = fcntl.fcntl(int(link.name), fcntl.F_GETFL)
                fcntl.fcntl(int(link.name), fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:  # closed by now, or a file system that has no direct transfers
            continue
