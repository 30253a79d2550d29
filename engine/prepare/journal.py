"""The journal of an unfinished ``cuboid prepare``: its request and its complete shards. The lock on
this file is the lock on the folder."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, Self

from engine.errors import UserError
from engine.files.full_disk import fsync_folder


class Journal:
    """A file of JSON lines: the request, then one line per complete shard."""

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        """Open and lock the journal at ``path``; write ``request`` to it if it is new.

        Raises UserError if another process has it locked, or if it belongs to another request.
        """
        self.path = path
        self._file = path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(
                f"{path.parent} is being written by another process; wait until it ends, or choose "
                "another --output"
            ) from None
        self._file.seek(0)
        complete, newline, _ = self._file.read().rpartition(b"\n")
        self._file.truncate(len(complete + newline))  # a line that was cut off by a crash
        lines = [json.loads(line) for line in complete.splitlines()]
        if lines and lines[0] != request:
            self._file.close()
            raise UserError(
                f"{path.parent} has unfinished work of other inputs or of another tokenizer; "
                f"repeat that command, delete {path}, or choose another --output"
            )
        self.shards: list[dict[str, Any]] = lines[1:]
        if not lines:
            self._append(request)
            fsync_folder(path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, shard: dict[str, Any]) -> None:
        """Record a complete shard. Raises OSError."""
        self._append(shard)
        self.shards.append(shard)

    def remove(self) -> None:
        """Delete the journal, after the manifest of the complete shards has been written."""
        self.path.unlink()

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
