"""All that one rank holds of a GPT: the layers of its virtual pipeline stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from models.gpt import GPT
from models.parallel.layers import initialise, named_shards
from models.parallel.shard import Shard
from models.parameters import parameters
from models.stage_split import chunks_of


class ModelChunks:
    """GPTs with different ranges of layers; parameters go by their global names.

    A tied table is held twice when a pipeline has stages: by the first for the lookup and by the
    last as the head. The last one's is the copy.
    """

    def __init__(self, chunks: Sequence[GPT], stages: Sequence[range] | None = None) -> None:
        """``stages``: the layers of all virtual stages, of all ranks; one stage by default."""
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
        """Where each parameter belongs in its global tensor."""
        return {name: box for chunk in self.chunks for name, box in named_shards(chunk).items()}

    def parameters_of_stage(self, rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and global shapes of what a pipeline rank holds, a tied table's copy aside."""
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
        """The name of a parameter that the other end of the pipeline holds too."""
        for chunk in self.chunks:
            if self.config.tie_embeddings and chunk.first != chunk.last:
                return "wte.weight"
        return None

    @property
    def copies(self) -> frozenset[str]:
        """Parameters that another rank of the pipeline counts, clips and saves."""
        held_as_copy = any(chunk.last and not chunk.first for chunk in self.chunks)
        return frozenset({self.tied} if self.tied and held_as_copy else set())
