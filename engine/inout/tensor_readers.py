"""Files of tensors that are read one tensor at a time, and never unpickled unchecked."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import UserError
from engine.inout.tensor_writers import SAFETENSORS_TYPES

_DTYPES = {name: dtype for dtype, name in SAFETENSORS_TYPES.items()}


class TensorFile(Mapping[str, Tensor]):
    """Tensors of a file by their names. Each is mapped from the disk when it is asked for and let
    go with its last reference, so that no other is in memory, and of it what is looked at.

    ``dtypes``: theirs, where they hold floating point numbers. ``metadata``: beside them.
    """

    dtypes: Mapping[str, torch.dtype | None]
    metadata: Mapping[str, str]

    def __iter__(self) -> Iterator[str]:
        return iter(self.dtypes)

    def __len__(self) -> int:
        return len(self.dtypes)

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self.dtypes


class SafetensorsFile(TensorFile):
    """Raises UserError for a file that is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, "pt") as file:
                self.metadata = file.metadata() or {}
                names = file.keys()
                slices = {name: file.get_slice(name) for name in names}
                self.dtypes = {n: _DTYPES.get(held.get_dtype()) for n, held in slices.items()}
                self.shapes = {n: tuple(held.get_shape()) for n, held in slices.items()}
        except SafetensorError as error:
            raise UserError(f"{path}: {error}") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


class TorchFile(TensorFile):
    """What torch.save wrote of a state dict. Raises UserError for a file that is none, and for one
    that holds more than tensors, of which nothing is run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.metadata = {}
        self.dtypes = {
            name: tensor.dtype if tensor.dtype.is_floating_point else None
            for name, tensor in self._load().items()
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._load()[name]

    def _load(self) -> dict[str, Tensor]:
        if not zipfile.is_zipfile(self._path):
            raise UserError(
                f"{self._path} is not in the form torch.save has had since 1.6, which alone can be "
                "read a tensor at a time; save it again"
            )
        try:
            found = torch.load(self._path, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(
                f"{self._path} holds more than tensors; nothing of it was run"
            ) from None
        except (RuntimeError, OSError) as error:
            line = str(error).partition("\n")[0]
            raise UserError(f"{self._path} cannot be read: {line}") from None
        if not isinstance(found, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
        ):
            raise UserError(f"{self._path} is no state dict: names and tensors")
        return found


class ShardedFiles(TensorFile):
    """Tensors of several files of a folder, after an index of which is where."""

    def __init__(self, index: Path, kind: Callable[[Path], TensorFile]) -> None:
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(places.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index} is no index of shards") from None
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise UserError(f"{index} names files that are not beside it")
        files = {name: kind(index.with_name(name)) for name in names}
        for name, file in places.items():
            if name not in files[file]:
                raise UserError(f"{index.with_name(file)} has no {name}, which {index.name} says")
        self._files = {name: files[file] for name, file in places.items()}
        self.metadata = {}
        self.dtypes = {name: file.dtypes[name] for name, file in self._files.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name][name]


def common_type(dtypes: Mapping[str, torch.dtype | None]) -> torch.dtype:
    """The smallest type that holds the numbers of all.

    Raises:
        ValueError: one does not hold floating point numbers, or there is none.
    """
    if not dtypes:
        raise ValueError("there are no tensors in it")
    for name, dtype in dtypes.items():
        if dtype is None:
            raise ValueError(f"{name} does not hold floating point numbers of 16 to 64 bits")
    return reduce(torch.promote_types, (dtype for dtype in dtypes.values() if dtype is not None))
