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

from models.parallel.shard import Box

Fetch = Callable[[], Tensor]


class Boxed(Tensor):
    """One rank's valid piece of a tensor whose size is global and unpadded.

    The methods are those by which DCP knows a tensor that is spread over ranks (as DTensor has
    them): any boxes are written, and any others read them back. Ranks with the same box all offer
    it, and DCP's planner shares the writing out among them. It holds no storage of its own and
    computes nothing.
    """

    fetch: Fetch  # of the piece, [box.size]
    box: Box

    @staticmethod
    def __new__(cls, fetch: Fetch, box: Box, dtype: torch.dtype) -> Boxed:
        """``fetch`` is called when the piece is wanted, which may be on a disk until then."""
        self: Boxed = Tensor._make_wrapper_subclass(cls, box.shape, dtype=dtype)
        self.fetch, self.box = fetch, box
        return self

    @classmethod
    def of(cls, local: Tensor, box: Box) -> Boxed:
        """``local``: the tensor that the rank holds, padded as ``box`` says."""
        return cls.holding(local.detach()[box.valid], box)

    @classmethod
    def holding(cls, piece: Tensor, box: Box) -> Boxed:
        return cls(lambda: piece, box, piece.dtype)

    @classmethod
    def whole(cls, tensor: Tensor) -> Boxed:
        """What is not cut, as numbers are not."""
        shape = tuple(tensor.shape)
        start, uncut = (0,) * len(shape), ((),) * len(shape)
        box = Box(shape=shape, offset=start, size=shape, local=shape, cut=uncut)
        return cls.of(tensor, box)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        function: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[Any, Any] | None = None,
    ) -> NoReturn:
        raise NotImplementedError(f"{function} of a box")

    def __create_write_items__(self, name: str, tensor: Boxed) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties(dtype=self.dtype),
                    size=torch.Size(self.box.shape),
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        if 0 in self.box.size:  # a cut into more pieces than there are entries
            return []
        return [ChunkStorageMetadata(torch.Size(self.box.offset), torch.Size(self.box.size))]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset == torch.Size(self.box.offset), index
        piece = self.fetch()
        assert piece.shape == self.box.size, f"{index}: {piece.shape}, not {self.box.size}"
        return piece
