"""Shards: the token ids of a file's text in a NumPy file (.npy) of one dimension.

The folder of a vocabulary has its tokenizer in ``tokenizer.json``, if ``cuboid prepare`` wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from engine.data.source import SourceRequest
from engine.data.tokenizer import (
    FILE_NAME,
    Tokenizer,
    fixed_size,
    load,
    read_saved,
    tokenizer_type,
)
from engine.errors import UserError

MANIFEST = "tokens.json"
"""The manifest of the shards of a folder: tokens, bytes of text and SHA-256 of each."""
DTYPES = (np.dtype("<u2"), np.dtype("<u4"))


def dtype_of(vocabulary: int) -> np.dtype[Any]:
    """Return the dtype in which Languini stores the ids of a vocabulary of this size."""
    return DTYPES[0] if vocabulary < 65535 else DTYPES[1]


@dataclass(frozen=True, kw_only=True)
class TokenShard:
    """A file of token ids, of which only the header has been read."""

    path: Path
    dtype: np.dtype[Any]
    tokens: int
    """Number of ids."""
    offset: int
    """Size of the header in bytes."""

    @property
    def bytes(self) -> int:
        """Size of the file in bytes."""
        return self.offset + self.tokens * self.dtype.itemsize

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Read the ids [start, start + count). Raises UserError if the file has become shorter."""
        offset = self.offset + start * self.dtype.itemsize
        try:
            ids = np.fromfile(self.path, self.dtype, count, offset=offset)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if len(ids) != count:
            raise UserError(
                f"{self.path} was truncated after the run had started; restore it, then resume"
            )
        return ids.astype(np.int64)


def open_shard(path: Path) -> TokenShard:
    """Read the header of a shard. Raises UserError if it is no complete array of ids."""
    try:
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            version = npy.read_magic(handle)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = header(handle)
            offset = handle.tell()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, SyntaxError) as error:
        raise UserError(f"{path} is not a NumPy file: {error}; restore it") from None
    if len(shape) != 1 or dtype not in DTYPES:
        raise UserError(
            f"{path} is not a row of token ids: an array of {dtype} and shape {shape}; it must "
            "have one dimension of uint16 or uint32"
        )
    shard = TokenShard(path=path, dtype=dtype, tokens=shape[0], offset=offset)
    if size != shard.bytes:
        raise UserError(
            f"{path} is incomplete: it has {size:,} of {shard.bytes:,} bytes; copy it again"
        )
    return shard


class ShardedIds:
    """The ids of several shards in a row, memory-mapped."""

    def __init__(
        self, parts: Sequence[NDArray[Any]], starts: NDArray[np.int64], first: int, length: int
    ) -> None:
        """Concatenate ``parts``, and take ``length`` ids from position ``first`` on. ``starts``:
        the position of the first id of each part."""
        self._parts, self._starts = parts, starts
        self._first, self._length = first, length

    @classmethod
    def of(cls, shards: Sequence[TokenShard]) -> Self:
        """Memory-map the ids of ``shards``, in this order."""
        parts = [
            np.memmap(shard.path, shard.dtype, "r", shard.offset, (shard.tokens,))
            for shard in shards
            if shard.tokens
        ]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        total = int(ends[-1]) if parts else 0
        return cls(parts, np.concatenate([np.zeros(1, np.int64), ends[:-1]]), 0, total)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, places: slice | NDArray[np.int64]) -> Any:
        """Return the ids at an array of positions, in its shape; for a slice, which must have no
        step, return a view."""
        if isinstance(places, slice):
            start, stop, _ = places.indices(self._length)
            return type(self)(self._parts, self._starts, self._first + start, stop - start)
        places = places + self._first
        numbers = np.searchsorted(self._starts, places, "right") - 1
        ids = np.empty(places.shape, np.int64)
        for number in np.unique(numbers):
            here = numbers == number
            ids[here] = self._parts[number][places[here] - self._starts[number]]
        return ids


def check_ids(ids: NDArray[np.int64], vocabulary: int, shard: TokenShard) -> None:
    """Raise UserError if an id that was read from ``shard`` is outside the vocabulary."""
    if ids.size and (largest := int(ids.max())) >= vocabulary:
        raise UserError(
            f"{shard.path}: the token id {largest:,} is not in the vocabulary of {vocabulary:,} "
            "tokens of data.tokenizer; set it to the tokenizer that made the shard"
        )


def folder_of_shards(request: SourceRequest, source: str, content: str = "") -> Path:
    """Return data.path, which must be one folder. Raises UserError.

    ``source``: the value of data.type, for the message; ``content``: the end of the message, which
    describes the folder."""
    if not isinstance(request.path, str) or not Path(request.path).is_dir():
        raise UserError(
            f"data.path={request.path!r} is not one folder that exists, which "
            f"data.type={source!r} reads; set it to a folder{content}"
        )
    return Path(request.path)


def tokenizer_of_shards(folder: Path, request: SourceRequest) -> Tokenizer:
    """Return the tokenizer of the shards in a folder: the folder's own tokenizer, or the tokenizer
    of the settings if the folder has none. Raises UserError if the two differ."""
    name, saved = request.tokenizer, read_saved(folder / FILE_NAME)
    if saved is None:
        if fixed_size(name, request.tokenizer_path) is None:
            raise UserError(
                f"{folder} has no {FILE_NAME}, so the characters of its ids are unknown; "
                "set data.tokenizer to the tokenizer that its ids were made by"
            )
        return tokenizer_type(name).fit((), request.tokenizer_path)
    if saved["type"] != name:
        raise UserError(
            f"data.tokenizer={name!r} differs from the tokenizer in {folder}; "
            f"set data.tokenizer={saved['type']!r}"
        )
    found = load(saved)
    if request.tokenizer_path is not None:
        stated = tokenizer_type(name).fit((), request.tokenizer_path)
        if stated.state() != found.state():
            raise UserError(
                f"data.tokenizer_path={request.tokenizer_path!r} is another model than the one in "
                f"{folder / FILE_NAME}; leave data.tokenizer_path out"
            )
    return found
