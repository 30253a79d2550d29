"""Standard output and standard error whose writes never fail. No torch.

What a command prints must not change what it does: a closed pipe, a full disk, a closed descriptor
or an encoding that lacks a character loses text, never a run or an exit code.
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
other ranks wait for this one meanwhile, and would fail by their timeout."""


class UnfailingWriter(io.RawIOBase):
    """Writes to a file descriptor; drops what cannot be written.

    ``max_stall``: seconds to wait for a slow reader before text is dropped; None: no limit. After
    that the stream does not wait again until the reader goes on.
    """

    def __init__(
        self, descriptor: int, max_stall: float | None, owner: TextIO | None = None
    ) -> None:
        """``owner``: the stream that would close the descriptor if it were deleted."""
        self._descriptor, self._max_stall, self._owner = descriptor, max_stall, owner
        self._stalled = self.reader_left = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data`` where that is possible; the number of bytes, as if all were."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self._wait_writable():
                with suppress(BlockingIOError):  # another process filled it in between
                    # More than PIPE_BUF may block although there is room
                    rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
        except BrokenPipeError:
            self.reader_left = True
        except (OSError, ValueError):  # a full disk; a descriptor that was closed
            pass
        return size

    def _wait_writable(self) -> bool:
        """Whether the descriptor takes more, after waiting for it."""
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
    """Put streams that never fail in the place of ``sys.stdout`` and ``sys.stderr``, through which
    all of Python prints: ``print``, rich, argparse, warnings, tracebacks, and the interpreter as it
    exits. Characters that the encoding lacks appear as escapes.

    Streams without a descriptor, such as those of tests, stay.
    """
    _open_closed()
    sys.stdout = _unfailing(sys.stdout, 1, max_stall)
    sys.stderr = _unfailing(sys.stderr, 2, max_stall)


def reader_left(stream: TextIO) -> bool:
    """Whether the stream is a pipe that nobody reads any more."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return isinstance(raw, UnfailingWriter) and raw.reader_left


def _open_closed() -> None:
    """Open the null device where a standard descriptor is closed. Otherwise the next file to be
    opened, such as a checkpoint, gets its number, and with it all that C code prints."""
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is not in use
            os.set_inheritable(null, True)


def _unfailing(stream: TextIO | None, number: int, max_stall: float | None) -> TextIO:
    """The stream for ``number``, in the place of ``stream`` (None: Python found it closed)."""
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
