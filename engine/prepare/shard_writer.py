"""Writes token ids to a shard as a stream."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from engine.files.atomic_write import rename_durably

HEADER = 128  # bytes: NumPy's header of one dimension, whatever its length


class ShardWriter:
    """A NumPy file (.npy) of one dimension, whose length is known at the end."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        """Open a temporary file for ``path``; a file of this name that a killed process left is
        overwritten. Raises OSError."""
        self.path, self._dtype = path, dtype
        self.tokens = 0
        self._temporary = path.with_name(f".{path.name}.part")
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("wb+")
        self._file.write(bytes(HEADER))

    def write(self, ids: NDArray[Any]) -> None:
        """Append ids [n]. Raises OSError."""
        self._file.write(np.ascontiguousarray(ids, self._dtype).data)
        self.tokens += len(ids)

    def finish(self) -> str:
        """Complete the file, rename it to its final name and return the SHA-256 of its content.
        Raises OSError."""
        self._file.seek(0)
        description = {
            "descr": npy.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.tokens,),
        }
        npy.write_array_header_1_0(self._file, description)
        assert self._file.tell() == HEADER
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        rename_durably(self._temporary, self.path)
        return digest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)
