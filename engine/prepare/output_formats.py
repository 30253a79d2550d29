"""The formats of the folder that ``cuboid prepare`` writes: its own, and Languini's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.data.token_files.languini_lists import list_path
from engine.data.token_files.token_shards import MANIFEST
from engine.errors import UserError
from engine.files.atomic_write import atomic_file
from engine.files.compression import COMPRESSED_SUFFIXES
from engine.prepare.parallel_encoder import TextBlock

SHARD_TOKENS = 1 << 24


class OutputFormat(Protocol):
    """Names the shards of some input files, and decides at which block of text each shard ends."""

    joins_files: bool
    """Whether all input files become one row of tokens, with the token between documents between
    files; otherwise each file becomes a shard."""
    data_type: str
    """The data.type that reads it."""

    @property
    def description(self) -> dict[str, Any]:
        """Options of the format on which the bytes of the shards depend, as a JSON object."""

    @property
    def folder(self) -> Path:
        """The folder to which the names of shards are relative, and which has the tokenizer. It is
        data.path of a config."""

    @property
    def manifest(self) -> Path:
        """The path of the manifest of all shards, which is written at the end."""

    def shard_name(self, number: int) -> str:
        """Return the name of a shard (from 0), relative to ``folder``."""

    def is_complete(self, block: TextBlock, tokens: int) -> bool:
        """Return whether a shard of ``tokens`` tokens ends with ``block``."""

    def finish(self, shards: Sequence[dict[str, Any]]) -> None:
        """Write the further files of the format, such as a file list, after the last shard."""


@dataclass(frozen=True)
class OwnFormat:
    """One row of tokens in shards of about equal size; data.type='tokens' reads it."""

    output: Path
    shard_tokens: int = SHARD_TOKENS
    joins_files = True
    data_type = "tokens"

    @property
    def description(self) -> dict[str, Any]:
        return {"source": self.data_type, "shard_tokens": self.shard_tokens}

    @property
    def folder(self) -> Path:
        return self.output

    @property
    def manifest(self) -> Path:
        return self.output / MANIFEST

    def shard_name(self, number: int) -> str:
        return f"{number:05}.npy"

    def is_complete(self, block: TextBlock, tokens: int) -> bool:
        return tokens >= self.shard_tokens

    def finish(self, shards: Sequence[dict[str, Any]]) -> None:
        """Write nothing: the manifest is all that the source needs."""


class LanguiniFormat:
    """One shard per input file, and a list of the files of a split; data.type='lanes' reads it."""

    joins_files = False
    data_type = "lanes"

    def __init__(self, output: Path, vocabulary: str, split: str, inputs: Sequence[Path]) -> None:
        """Name the shards of the inputs. ``vocabulary``: name of their folder below ``output``.
        Raises UserError if two input files have one name."""
        self.output, self.split = output, split
        self._vocabulary = vocabulary
        self._names = [f"files/{_stem(path)}.npy" for path in inputs]
        first: dict[str, Path] = {}
        for name, path in zip(self._names, inputs, strict=True):
            if name in first:
                raise UserError(
                    f"{first[name]} and {path} would both become {name}; rename one of them"
                )
            first[name] = path

    @property
    def description(self) -> dict[str, Any]:
        return {"source": self.data_type, "shards": self._names}

    @property
    def folder(self) -> Path:
        return self.output / self._vocabulary

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.split}-{MANIFEST}"

    def shard_name(self, number: int) -> str:
        return self._names[number]

    def is_complete(self, block: TextBlock, tokens: int) -> bool:
        return block.ends_file

    def finish(self, shards: Sequence[dict[str, Any]]) -> None:
        """Write the file list."""
        rows = np.array([[shard["file"], str(shard["tokens"])] for shard in shards])
        with atomic_file(list_path(self.output, self.split)) as file:
            np.save(file, rows, allow_pickle=False)


def _stem(path: Path) -> str:
    """Return the name of a file without its last suffix and without a suffix for compression."""
    name = Path(path.stem) if path.suffix.lower() in COMPRESSED_SUFFIXES else Path(path.name)
    return name.stem
