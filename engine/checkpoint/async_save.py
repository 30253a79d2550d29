"""Writing beside the training: a copy to write from, and a thread to write in."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from engine.checkpoint.dcp_shard import DCPShard
from engine.checkpoint.state_dict import Tensors

THREAD_NAME = "checkpoint"  # what the thread goes by


class HostStaging:
    """Pieces of tensors in the host's memory, which is taken once and kept: pinned where they come
    from a GPU, so that they are copied at the speed of the bus."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def stage(self, tensors: Tensors) -> Tensors:
        """The same pieces as they are now, whatever becomes of the originals."""
        copied: Tensors = {}
        for name, tensor in tensors.items():
            assert isinstance(tensor, DCPShard)
            shard, buffer = tensor.fetch(), self._buffers.get(name)
            if buffer is None or buffer.shape != shard.shape:
                buffer = torch.empty(shard.shape, dtype=shard.dtype, pin_memory=shard.is_cuda)
                self._buffers[name] = buffer
            buffer.copy_(shard, non_blocking=True)
            copied[name] = DCPShard.of_valid(buffer, tensor.shard)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied


class Background:
    """One task at a time. What it raises is raised where it is waited for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether a task raised what no one has waited for yet."""
        return self._error is not None

    def start(self, task: Callable[[], None]) -> None:
        """Begin a task, once the one before is done."""
        self.wait()
        # A daemon: a task that waits for a rank that is gone must not keep the process.
        self._thread = threading.Thread(
            target=self._run, args=(task,), name=THREAD_NAME, daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Until the task is done, but no longer than that."""
        if self._thread is not None:
            self._thread.join(seconds)
            error, self._error = self._error, None
            if error is not None:
                raise error

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            self._error = error
