"""Asynchronous saving: stages tensors in host memory and writes them from a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from engine.checkpoint.dcp_shard import DCPShard
from engine.checkpoint.state_dict import Tensors

THREAD_NAME = "checkpoint"


class HostStaging:
    """Buffers in host memory for shards of tensors. They are allocated once and reused, and pinned
    for shards on a GPU, so that copies run at the bandwidth of the bus."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def stage(self, tensors: Tensors) -> Tensors:
        """Copy the shards ``tensors`` into the buffers and return shards that read from the
        buffers. The next call overwrites the buffers."""
        staged: Tensors = {}
        for name, tensor in tensors.items():
            assert isinstance(tensor, DCPShard)
            shard, buffer = tensor.fetch(), self._buffers.get(name)
            if buffer is None or buffer.shape != shard.shape:
                buffer = torch.empty(shard.shape, dtype=shard.dtype, pin_memory=shard.is_cuda)
                self._buffers[name] = buffer
            buffer.copy_(shard, non_blocking=True)
            staged[name] = DCPShard.of_valid(buffer, tensor.shard)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return staged


class Background:
    """A thread that runs one task at a time. ``wait`` raises the exception of the task."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """True if a task raised an exception that ``wait`` has not raised yet."""
        return self._error is not None

    def start(self, task: Callable[[], None]) -> None:
        """Wait for the previous task, then start ``task``."""
        self.wait()
        # A daemon, because a task that waits for a dead rank must not keep the process alive
        self._thread = threading.Thread(
            target=self._run, args=(task,), name=THREAD_NAME, daemon=True
        )
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the task is done, at most ``seconds``, and raise its exception, if any."""
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
