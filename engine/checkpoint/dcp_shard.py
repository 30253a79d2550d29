"""A piece of a global tensor, as torch.distributed.checkpoint writes and reads it."""

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
    """One rank's valid piece of a tensor whose size is global and unpadded.

    The methods are those by which DCP knows a tensor that is spread over ranks (as DTensor has
    them): any boxes are written, and any others read them back. Ranks with the same box all offer
    it, and DCP's planner shares the writing out among them. It holds no storage of its own and
    computes nothing.
    """

    fetch: Fetch  # of the piece, [box.size]
    shard: Shard

    @staticmethod
    def __new__(cls, fetch: Fetch, shard: Shard, dtype: torch.dtype) -> DCPShard:
        """``fetch`` is called when the piece is wanted, which may be on a disk until then."""
        self: DCPShard = Tensor._make_wrapper_subclass(cls, shard.shape, dtype=dtype)
        self.fetch, self.shard = fetch, shard
        return self

    @classmethod
    def of_local(cls, local: Tensor, shard: Shard) -> DCPShard:
        """``local``: the tensor that the rank holds, padded as ``shard`` says."""
        return cls.of_valid(local.detach()[shard.valid_slices], shard)

    @classmethod
    def of_valid(cls, valid: Tensor, shard: Shard) -> DCPShard:
        return cls(lambda: valid, shard, valid.dtype)

    @classmethod
    def unsharded(cls, tensor: Tensor) -> DCPShard:
        """What is not cut, as numbers are not."""
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
        raise NotImplementedError(f"{function} of a box")

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
        if 0 in self.shard.size:  # a cut into more pieces than there are entries
            return []
        return [ChunkStorageMetadata(torch.Size(self.shard.offset), torch.Size(self.shard.size))]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset == torch.Size(self.shard.offset), index
        piece = self.fetch()
        assert piece.shape == self.shard.size, f"{index}: {piece.shape}, not {self.shard.size}"
        return piece
