"""Readers of tensor files: one tensor at a time, and without executing pickled code."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import UserError
from engine.inout.tensor_writers import SAFETENSORS_TYPES

_DTYPES = {name: dtype for dtype, name in SAFETENSORS_TYPES.items()}


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a file by name. Each is memory-mapped when it is requested and unmapped with
    its last reference, so only the requested tensors take memory."""

    dtypes: Mapping[str, torch.dtype | None]
    """Of each tensor; None if it is no floating point type of 16 to 64 bits."""
    metadata: Mapping[str, str]
    """The file's metadata; empty in formats without."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.dtypes)

    def __len__(self) -> int:
        return len(self.dtypes)

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self.dtypes


class SafetensorsFile(TensorFile):
    """A safetensors file. Raises UserError for a file of another format."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, "pt") as file:
                self.metadata = file.metadata() or {}
                names = file.keys()
                slices = {name: file.get_slice(name) for name in names}
                self.dtypes = {n: _DTYPES.get(view.get_dtype()) for n, view in slices.items()}
                self.shapes = {n: tuple(view.get_shape()) for n, view in slices.items()}
        except SafetensorError as error:
            raise UserError(f"{path}: {error}") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


class TorchFile(TensorFile):
    """A state dict in a file by torch.save. Raises UserError for any other file, and for a file
    that contains objects other than tensors and Python's basic types; no pickled code is
    executed."""

    def __init__(self, path: Path, entries: Sequence[str] = ()) -> None:
        """Open the file ``path``. ``entries``: names under which a checkpoint may store its state
        dict; the first that exists is used."""
        self._path = path
        self._entries = entries
        self.metadata = {}
        self.dtypes = {
            name: tensor.dtype if tensor.dtype.is_floating_point else None
            for name, tensor in self._load().items()
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._load()[name]

    def entry(self, name: str) -> Mapping[str, Any]:
        """Return the entry ``name`` of a checkpoint; empty if the entry is missing or is no
        dict."""
        content = self._content()
        found = content.get(name) if isinstance(content, dict) else None
        return found if isinstance(found, dict) else {}

    def _load(self) -> dict[str, Tensor]:
        state = self._content()
        if isinstance(state, dict):
            state = next((state[name] for name in self._entries if name in state), state)
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
        ):
            raise UserError(
                f"{self._path} is no state dict; save a dict that maps names to tensors"
            )
        return state

    def _content(self) -> object:
        if not zipfile.is_zipfile(self._path):
            raise UserError(
                f"{self._path} is in PyTorch's pre-1.6 format; re-save it with a current torch.save"
            )
        try:
            content: object = torch.load(
                self._path, map_location="cpu", mmap=True, weights_only=True
            )
        except pickle.UnpicklingError:
            raise UserError(
                f"{self._path} contains more than tensors: it was not loaded, and "
                "nothing in it was executed; save its state dict alone, where you trust the file"
            ) from None
        except (RuntimeError, OSError) as error:
            line = str(error).partition("\n")[0]
            raise UserError(f"{self._path} cannot be read: {line}") from None
        return content


class ShardedFiles(TensorFile):
    """The tensors of several files of a folder, with an index that names the file of each
    tensor."""

    def __init__(self, index: Path, kind: Callable[[Path], TensorFile]) -> None:
        try:
            file_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(file_of.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index} is no index of shards; restore it") from None
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise UserError(
                f"{index} names files outside its own folder, which are not read; restore it"
            )
        files = {name: kind(index.with_name(name)) for name in names}
        for name, file in file_of.items():
            if name not in files[file]:
                raise UserError(
                    f"{index.with_name(file)} lacks {name}, which {index.name} lists for it; "
                    "restore it"
                )
        self._files = {name: files[file] for name, file in file_of.items()}
        self.metadata = {}
        self.dtypes = {name: file.dtypes[name] for name, file in self._files.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name][name]


def common_type(dtypes: Mapping[str, torch.dtype | None]) -> torch.dtype:
    """Return the smallest dtype that represents the values of all ``dtypes``.

    Raises:
        ValueError: there are no tensors, or one has no floating point type of 16 to 64 bits.
    """
    if not dtypes:
        raise ValueError("it contains no tensors")
    for name, dtype in dtypes.items():
        if dtype is None:
            raise ValueError(f"{name} is not of a floating point type of 16 to 64 bits")
    return reduce(torch.promote_types, (dtype for dtype in dtypes.values() if dtype is not None))
