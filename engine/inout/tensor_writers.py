"""Writers of tensor files: one tensor at a time, so memory contains only the current one.

The writers of safetensors and torch need all tensors at once. The files written here equal the
libraries' files byte for byte.
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
    """Return the bytes of tensors of these ``shapes`` and this ``dtype``."""
    return dtype.itemsize * sum(map(prod, shapes.values()))


def to_file_dtype(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Convert a tensor to ``dtype``, contiguous and on the CPU; the result may share the tensor's
    memory.

    Raises:
        ValueError: the tensor's shape is not ``shape``.
        UserError: the tensor has finite values outside the range of ``dtype``.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(shape)}")
    converted = tensor.detach().to("cpu", dtype).contiguous()
    narrower = torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    if narrower and not torch.isfinite(converted).all() and torch.isfinite(tensor).all():
        largest = float(tensor.abs().max())
        raise UserError(
            f"{name} contains {largest:.3g}, which is too large for {_name(dtype)}; export with "
            "--dtype float32"
        )
    return converted


class SafetensorsWriter:
    """Writes a safetensors file (https://github.com/huggingface/safetensors, "Format"): the size of
    the header, the header in JSON, the tensors. The header's names are sorted, as the safetensors
    library does.

    Tensors are written in any order; all must be written before the end of the ``with`` block.
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
        self._unwritten, self._start = set(shapes), 8 + len(text)
        self._file = path.open("xb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor. Raises ValueError and UserError as ``to_file_dtype`` does."""
        data = to_file_dtype(name, tensor, self._shapes[name], self._dtype)
        self._file.seek(self._start + self._offsets[name])
        self._file.write(data.view(torch.uint8).numpy().data)
        self._unwritten.remove(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        assert error is not None or not self._unwritten, f"not written: {self._unwritten}"


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Shapes,
    *,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write all tensors to one file. Raises ValueError, UserError, OSError."""
    with SafetensorsWriter(path, shapes, dtype, metadata) as file:
        for name, tensor in tensors:
            file.write(name, tensor)


def write_pt(
    path: Path, tensors: Iterable[tuple[str, Tensor]], shapes: Shapes, *, dtype: torch.dtype
) -> None:
    """Write a state dict as torch.save does: a zip that contains a pickled dict, in which each
    tensor names its storage, and the storages.

    torch.serialization.skip_data() may replace this function once it is no longer a prototype.

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
                if (
                    data.untyped_storage().nbytes() > data.nbytes
                ):  # a view: the whole storage would be written
                    data = data.clone()
                storage: Any = data.untyped_storage()
                archive.write_record(f"data/{keys.pop(name)}", storage, storage.nbytes())
                stream.check()
        finally:
            archive.write_end_of_file()  # otherwise its destructor writes to the closed file
        stream.check()
    assert not keys, f"not written: {keys}"


class _CheckedFile:
    """A file that raises write errors only in ``check``, because torch's writer aborts the process
    if a write in the writer's destructor fails."""

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
        """Raise the OSError of the first failed write, if any."""
        if self._failure is not None:
            raise self._failure


@dataclass(frozen=True)
class _Storage:
    """Stands for a tensor's storage in the pickled dict; the zip's record data/``key`` has its
    content."""

    key: str
    entries: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _TensorStandIn:
    """Is pickled as a tensor of this shape and dtype, without having its values."""

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
