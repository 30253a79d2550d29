"""Files of tensors that are written one tensor at a time: what is in memory is the tensor in hand.

The libraries' own writers want all tensors at once. These files are theirs, byte by byte.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import torch
from torch import Tensor

from engine.errors import UserError

SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
STORAGES: Mapping[torch.dtype, Any] = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}
ALIGNMENT = 8

Shapes = Mapping[str, tuple[int, ...]]


def total_bytes(shapes: Shapes, dtype: torch.dtype) -> int:
    """Bytes of all the tensors."""
    return dtype.itemsize * sum(map(prod, shapes.values()))


def to_file_dtype(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor as it goes into a file, in memory of its own or the one it has.

    Raises:
        ValueError: it has another shape.
        UserError: it has numbers that ``dtype`` has no room for.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} is {list(tensor.shape)}, wanted {list(shape)}")
    found = tensor.detach().to("cpu", dtype).contiguous()
    narrower = torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    if narrower and not torch.isfinite(found).all() and torch.isfinite(tensor).all():
        largest = float(tensor.abs().max())
        raise UserError(f"{name} holds {largest:.3g}, which is too large for {_name(dtype)}")
    return found


class SafetensorsWriter:
    """A file of safetensors (https://github.com/huggingface/safetensors, "Format"): the size of the
    header, the header in JSON, the tensors. Names are sorted, as its own library does it.

    Tensors come in any order. Leaving ``with`` expects that all have come.
    """

    def __init__(
        self, path: Path, shapes: Shapes, dtype: torch.dtype, metadata: Mapping[str, str]
    ) -> None:
        self._shapes, self._dtype = shapes, dtype
        header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
        self._offsets, offset = dict[str, int](), 0
        for name in sorted(shapes):
            self._offsets[name] = offset
            end = offset + total_bytes({name: shapes[name]}, dtype)
            header[name] = {
                "dtype": SAFETENSORS_TYPES[dtype],
                "shape": list(shapes[name]),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        self._left, self._start = set(shapes), 8 + len(text)
        self._file = path.open("xb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Raises ValueError, UserError, as ``to_file_dtype`` does."""
        data = to_file_dtype(name, tensor, self._shapes[name], self._dtype)
        self._file.seek(self._start + self._offsets[name])
        self._file.write(data.view(torch.uint8).numpy().data)
        self._left.remove(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        assert error is not None or not self._left, f"not written: {self._left}"


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Shapes,
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """All tensors into one file. Raises ValueError, UserError, OSError."""
    with SafetensorsWriter(path, shapes, dtype, metadata) as file:
        for name, tensor in tensors:
            file.write(name, tensor)


def write_pt(
    path: Path, tensors: Iterable[tuple[str, Tensor]], shapes: Shapes, *, dtype: torch.dtype
) -> None:
    """The state dict that torch.save writes: a zip with the pickle of a dict, in which each tensor
    names its storage, and the storages.

    Raises ValueError, UserError, OSError.
    """
    keys = {name: str(number) for number, name in enumerate(shapes)}
    pickled = io.BytesIO()
    state = {name: _TensorStandIn(key, shapes[name], dtype) for name, key in keys.items()}
    _Pickler(pickled, protocol=2).dump(state)
    with path.open("xb") as file:
        stream = _CheckedFile(file)
        archive = torch._C.PyTorchFileWriter(cast("IO[bytes]", stream))
        try:
            for record, text in (
                ("data.pkl", pickled.getvalue()),
                (".format_version", b"1"),
                (".storage_alignment", b"64"),
                ("byteorder", sys.byteorder.encode()),
            ):
                archive.write_record(record, text, len(text))
            for name, tensor in tensors:
                data = to_file_dtype(name, tensor, shapes[name], dtype)
                if data.untyped_storage().nbytes() > data.nbytes:  # all of which would be written
                    data = data.clone()
                storage: Any = data.untyped_storage()
                archive.write_record(f"data/{keys.pop(name)}", storage, storage.nbytes())
                stream.check()
        finally:
            archive.write_end_of_file()  # or its destructor will, into a file that is closed
        stream.check()
    assert not keys, f"not written: {keys}"


class _CheckedFile:
    """A file whose failure is told by ``check``: torch's writer ends the process at what its
    destructor cannot write."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._failure: OSError | None = None

    def write(self, data: bytes) -> int:
        if self._failure is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._failure = error
        return len(data)

    def check(self) -> None:
        """Raises OSError."""
        if self._failure is not None:
            raise self._failure


@dataclass(frozen=True)
class _Storage:
    """The memory of a tensor, by the number of its record."""

    key: str
    entries: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _TensorStandIn:
    """Pickled as a tensor is, without having one."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        stride = tuple(prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))
        storage = _Storage(self.key, prod(self.shape), self.dtype)
        hooks: OrderedDict[str, Any] = OrderedDict()
        arguments = (storage, 0, self.shape, stride, False, hooks)
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> tuple[Any, ...] | None:
        if not isinstance(obj, _Storage):
            return None
        return ("storage", STORAGES[obj.dtype], obj.key, "cpu", obj.entries)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
