"""Encodes text on several processes, in the order of the text and in bounded memory."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.data.tokenizer import Piece, Tokenizer, load, read_saved
from engine.errors import RunError
from engine.world.signals import stop_with_parent

AHEAD = 3  # blocks per process that are encoded or wait: memory is bounded and no process idles


@dataclass(frozen=True, kw_only=True)
class TextBlock:
    """Text that one process encodes at once."""

    file: int
    """Index of the input file that it is from."""
    texts: tuple[Piece, ...]
    """Texts that are encoded by themselves; None: the token between documents."""
    ends_file: bool = False
    """Whether it is the last block of the input file."""


@dataclass(frozen=True, kw_only=True)
class EncodedBlock:
    """The token ids of a block."""

    block: TextBlock
    ids: NDArray[Any]
    bytes: int
    """UTF-8 bytes of its text."""


class ParallelEncoder:
    """Processes that encode blocks by the tokenizer in a file."""

    def __init__(self, tokenizer: Path, dtype: np.dtype[Any], processes: int) -> None:
        """Prepare the processes. ``tokenizer``: a file with the JSON object of
        ``engine.data.tokenizer.dump``."""
        self._tokenizer, self._dtype = str(tokenizer), dtype.str
        self._ahead = AHEAD * processes
        self._pool = ProcessPoolExecutor(
            processes, mp_context=get_context("spawn"), initializer=_begin_process
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def encode(self, blocks: Iterable[TextBlock]) -> Generator[EncodedBlock, None, None]:
        """Yield the blocks with their ids, in order. Raises UserError for text without ids, and
        RunError if a process was killed."""
        waiting: deque[tuple[TextBlock, Future[tuple[NDArray[Any], int]]]] = deque()
        try:
            for block in blocks:
                if len(waiting) == self._ahead:
                    yield _result(*waiting.popleft())
                job = self._pool.submit(_encode, self._tokenizer, self._dtype, block.texts)
                waiting.append((block, job))
            while waiting:
                yield _result(*waiting.popleft())
        except BrokenProcessPool:
            raise RunError(
                "a process that encodes text was killed, perhaps for its memory; repeat the "
                "command, which continues, with fewer --workers"
            ) from None


def _result(block: TextBlock, job: Future[tuple[NDArray[Any], int]]) -> EncodedBlock:
    ids, size = job.result()
    return EncodedBlock(block=block, ids=ids, bytes=size)


def _begin_process() -> None:
    """Let only the parent handle Ctrl-C, and end this process when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stop_with_parent()


@cache
def _tokenizer(path: str) -> Tokenizer:
    saved = read_saved(Path(path))
    assert saved is not None, "the parent has written it"
    return load(saved)


def _encode(path: str, dtype: str, texts: tuple[Piece, ...]) -> tuple[NDArray[Any], int]:
    """Return the ids [n] of texts, and the number of their UTF-8 bytes. Runs in a process of the
    pool."""
    tokenizer = _tokenizer(path)
    separator = np.array([tokenizer.end_of_text or 0], dtype)
    parts = [separator if text is None else tokenizer.encode(text).astype(dtype) for text in texts]
    return np.concatenate([np.empty(0, dtype), *parts]), sum(len((t or "").encode()) for t in texts)
