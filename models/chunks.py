"""The part of a GPT on one rank: the layers of its virtual pipeline stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from models.gpt import GPT
from models.parallel.layers import initialise, named_shards
from models.parallel.shard import Shard
from models.parameters import parameters
from models.stage_split import chunks_of


class ModelChunks:
    """One GPT for each virtual stage of this rank. Parameters keep the whole model's names.

    In a pipeline a tied embedding table exists twice: on the first stage for the lookup, and on the
    last stage as the head. The table of the last stage is the copy.
    """

    def __init__(self, chunks: Sequence[GPT], stages: Sequence[range] | None = None) -> None:
        """Set the chunks. ``stages``: layers of all virtual stages of all ranks; None for one."""
        self.chunks, self.parallel = list(chunks), chunks[0].parallel
        self.config = chunks[0].config
        self.stages = [range(self.config.n_layer)] if stages is None else list(stages)

    def __iter__(self) -> Iterator[GPT]:
        return iter(self.chunks)

    def __getitem__(self, chunk: int) -> GPT:
        return self.chunks[chunk]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for chunk in self.chunks:
            yield from chunk.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def shards(self) -> dict[str, Shard]:
        """Return the position of each local parameter in its global tensor."""
        return {name: shard for chunk in self.chunks for name, shard in named_shards(chunk).items()}

    def parameters_of_stage(self, rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and global shape of a rank's parameters, except the copy of a tied table."""
        mode, ranks = self.parallel.mode, self.parallel.sizes["pipeline"]
        for layers in chunks_of(self.stages, rank, ranks):
            for parameter in parameters(self.config, mode, layers):
                if parameter.name != "wte.weight" or layers.start == 0:
                    yield parameter.name, parameter.shape

    def initialise(self, seed: int) -> None:
        for chunk in self.chunks:
            initialise(chunk, seed)

    def train(self, mode: bool = True) -> None:
        for chunk in self.chunks:
            chunk.train(mode)

    @property
    def tied(self) -> str | None:
        """The name of the parameter that both ends of the pipeline have; None if there is none."""
        for chunk in self.chunks:
            if self.config.tie_embeddings and chunk.first != chunk.last:
                return "wte.weight"
        return None

    @property
    def copies(self) -> frozenset[str]:
        """The parameters that another pipeline rank counts, clips and saves."""
        held_as_copy = any(chunk.last and not chunk.first for chunk in self.chunks)
        return frozenset({self.tied} if self.tied and held_as_copy else set())
