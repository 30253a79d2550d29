"""A shard of a global tensor, as DCP (torch.distributed.checkpoint) writes and reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from models.parallel.shard import Shard

Fetch = Callable[[], Tensor]


class DCPShard(Tensor):
    """One rank's shard, without padding, of a tensor with the global, unpadded size.

    It has the methods by which DCP recognizes a tensor that is distributed over ranks (as DTensor
    has): it can be saved with one sharding and loaded with another. Ranks with the same shard all
    offer it, and DCP's planner divides the writing among them. It has no storage, and no operator
    works on it.
    """

    fetch: Fetch
    """Returns the shard without padding [shard.size]."""
    shard: Shard

    @staticmethod
    def __new__(cls, fetch: Fetch, shard: Shard, dtype: torch.dtype) -> DCPShard:
        """Make a shard that calls ``fetch`` only when it is needed: it may be on a disk."""
        self: DCPShard = Tensor._make_wrapper_subclass(cls, shard.shape, dtype=dtype)
        self.fetch, self.shard = fetch, shard
        return self

    @classmethod
    def of_local(cls, local: Tensor, shard: Shard) -> DCPShard:
        """Wrap ``local``, this rank's tensor with padding [shard.local]."""
        return cls.of_valid(local.detach()[shard.valid_slices], shard)

    @classmethod
    def of_valid(cls, valid: Tensor, shard: Shard) -> DCPShard:
        """Wrap ``valid``, this rank's tensor without padding [shard.size]."""
        return cls(lambda: valid, shard, valid.dtype)

    @classmethod
    def unsharded(cls, tensor: Tensor) -> DCPShard:
        """Wrap a tensor that is not sharded, such as a scalar."""
        shape = tuple(tensor.shape)
        start, spec = (0,) * len(shape), ((),) * len(shape)
        shard = Shard(shape=shape, offset=start, size=shape, local=shape, spec=spec)
        return cls.of_local(tensor, shard)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        function: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[Any, Any] | None = None,
    ) -> NoReturn:
        raise NotImplementedError(f"{function} of a DCPShard")

    def __create_write_items__(self, name: str, tensor: DCPShard) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties(dtype=self.dtype),
                    size=torch.Size(self.shard.shape),
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        if 0 in self.shard.size:  # more ranks than entries
            return []
        return [ChunkStorageMetadata(torch.Size(self.shard.offset), torch.Size(self.shard.size))]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset == torch.Size(self.shard.offset), index
        piece = self.fetch()
        assert piece.shape == self.shard.size, f"{index}: {piece.shape}, not {self.shard.size}"
        return piece
