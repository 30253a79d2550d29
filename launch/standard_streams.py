"""Standard output and standard error whose writes never fail. No torch.

Printing must not affect a run or an exit code: a closed pipe, a full disk, a closed descriptor or
an encoding that lacks a character loses only text.
"""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STANDARD = range(3)
"""The descriptors of standard input, output and error."""
MAX_STALL_SECONDS = 5.0
"""How long a rank waits for a reader that has stopped reading (Ctrl-S, a suspended pager). The
other ranks wait for this one, and would time out."""


class UnfailingWriter(io.RawIOBase):
    """Writes to a file descriptor; drops text that cannot be written.

    ``max_stall``: seconds to wait for a slow reader before text is dropped; None: no limit. After
    such a wait the stream does not wait again until the reader has resumed.
    """

    def __init__(
        self, descriptor: int, max_stall: float | None, owner: TextIO | None = None
    ) -> None:
        """Keep ``owner`` alive, the stream whose deletion would close the descriptor."""
        self._descriptor, self._max_stall, self._owner = descriptor, max_stall, owner
        self._stalled = self.reader_left = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write as much of ``data`` as possible. Return the length of ``data``, as if all were
        written."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self._wait_writable():
                with suppress(BlockingIOError):  # another process filled the pipe
                    # More than PIPE_BUF bytes may block although some fit
                    rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
        except BrokenPipeError:
            self.reader_left = True
        except (OSError, ValueError):  # a full disk; a descriptor that was closed
            pass
        return size

    def _wait_writable(self) -> bool:
        """Wait until the descriptor is writable; return False if it is not in time."""
        wait = 0.0 if self._stalled else self._max_stall
        _, ready, _ = select.select([], [self._descriptor], [], wait)
        self._stalled = not ready
        return not self._stalled

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


def install_unfailing_streams(max_stall: float | None = None) -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that never fail. All of Python prints
    through them: ``print``, rich, argparse, warnings, tracebacks and the interpreter's exit.
    Characters that the encoding lacks appear as escapes.

    Streams without a descriptor, such as those of tests, are not replaced.
    """
    _open_closed()
    sys.stdout = _unfailing(sys.stdout, 1, max_stall)
    sys.stderr = _unfailing(sys.stderr, 2, max_stall)


def reader_left(stream: TextIO) -> bool:
    """Return whether the stream is a pipe whose reader has closed it."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return isinstance(raw, UnfailingWriter) and raw.reader_left


def _open_closed() -> None:
    """Open the null device for each closed standard descriptor. Otherwise the next file to be
    opened, such as a checkpoint, would get the descriptor's number and receive all output of C
    code."""
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest unused number
            os.set_inheritable(null, True)


def _unfailing(stream: TextIO | None, number: int, max_stall: float | None) -> TextIO:
    """Return a stream that replaces ``stream`` (None: ``number`` was closed at start)."""
    if stream is None:
        return _text(UnfailingWriter(number, max_stall), "utf-8")
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return stream
    with suppress(OSError, ValueError):
        stream.flush()
    return _text(
        UnfailingWriter(number, max_stall, stream),
        stream.encoding,
        line_buffering=getattr(stream, "line_buffering", False),
        unbuffered=getattr(stream, "write_through", False),
    )


def _text(
    raw: UnfailingWriter, encoding: str, *, line_buffering: bool = False, unbuffered: bool = False
) -> TextIO:
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[type-var]
        encoding=encoding,
        errors="backslashreplace",
        newline="\n",
        line_buffering=line_buffering,
        write_through=unbuffered,
    )
