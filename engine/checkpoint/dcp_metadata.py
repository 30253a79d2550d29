"""Reads DCP's ``.metadata``, a pickle, without executing code: only allow-listed names load."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from engine.checkpoint.manifest import CorruptCheckpointError

METADATA = ".metadata"

# All names in the metadata of tensors. BytesStorageMetadata is missing on purpose: DCP would
# unpickle its objects unchecked.
_TYPES: list[Any] = [
    metadata.Metadata,
    metadata.TensorStorageMetadata,
    metadata.TensorProperties,
    metadata.ChunkStorageMetadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo,
    torch.Size,
    torch.serialization._get_layout,
]


def _enum_member(kind: Any, name: str) -> Any:
    """Replace getattr, with which some releases of Python 3.11 pickle a member of an enum."""
    if kind is not metadata._MEM_FORMAT_ENCODING:
        raise CorruptCheckpointError(
            f"{METADATA} asks for {name} of {kind}, which DCP metadata never contains"
        )
    return kind[name]


_DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
ALLOWED: dict[tuple[str, str], Any] = {
    **{(kind.__module__, kind.__name__): kind for kind in _TYPES},
    ("builtins", "getattr"): _enum_member,
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise CorruptCheckpointError(
                f"{METADATA} names {module}.{name}, which DCP metadata never contains"
            )
        return ALLOWED[module, name]


def parse(data: bytes, files: set[str]) -> Metadata:
    """Unpickle and check the metadata of a checkpoint with these ``files``. Nothing in ``data`` is
    executed. Raises CorruptCheckpointError."""
    try:
        content = _Unpickler(io.BytesIO(data)).load()
        _check(content, files)
    except CorruptCheckpointError:
        raise
    except Exception as error:
        raise CorruptCheckpointError(
            f"{METADATA} is not DCP's: {type(error).__name__}: {error}"
        ) from None
    assert isinstance(content, Metadata)
    return content


def _check(content: Any, files: set[str]) -> None:
    """Check that each entry is a tensor and each of its shards lies in a file of this checkpoint.
    Raises CorruptCheckpointError."""
    if type(content) is not Metadata:
        raise CorruptCheckpointError(f"{METADATA} contains no metadata")
    for name, tensor in content.state_dict_metadata.items():
        if type(name) is not str or type(tensor) is not TensorStorageMetadata:
            raise CorruptCheckpointError(f"{METADATA} has an entry that is not a tensor")
        if not isinstance(tensor.properties.dtype, torch.dtype):
            raise CorruptCheckpointError(f"{METADATA}: {name} has no dtype")
        for chunk in tensor.chunks:
            index = MetadataIndex(name, chunk.offsets)
            location = content.storage_data[index]
            if location.relative_path not in files:
                raise CorruptCheckpointError(
                    f"{METADATA}: {name} is in {location.relative_path}, not of this folder"
                )
            if location.transform_descriptors is not None:
                raise CorruptCheckpointError(f"{METADATA}: {name} is transformed")
