"""Memory of a rank between steps: parameters, gradients, optimizer states.

Mixed-precision Adam needs 4 + 4 + 8 bytes per parameter; ZeRO divides the bytes of weights by the
number of ranks that share them (Rajbhandari et al. 2020, section 3 and figure 1, where 16-bit
copies are permanent and gradients are 16-bit: 16 bytes in total). Here 16-bit copies are made for a
step (stages 1 and 2) or for each use, and gradients are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import prod
from typing import TYPE_CHECKING

from engine.estimate.block import BlockMemory
from engine.estimate.embedding_head import EmbeddingHeadMemory
from engine.estimate.ledger import MemoryKind
from engine.estimate.local_shapes import LocalShapes, LocalWeight
from engine.optim.registry import states_of
from models.config import GPTConfig
from models.parallel.tuning import BUCKET_BYTES, SMALL_BYTES
from models.parameters import Parameter, parameters

if TYPE_CHECKING:
    from engine.config.sections.model import ModelSettings

POSITIONS = "wpe.weight"


@dataclass(frozen=True, kw_only=True)
class BucketShape:
    """A bucket of gradients that are reduced together, over one axis after the other."""

    axes: tuple[str, ...]
    entries: int


@dataclass(frozen=True, kw_only=True)
class LocalParameter:
    """The shard of a parameter on one rank."""

    entries: int
    """Padding included."""
    summed: tuple[str, ...]
    """Axes that its gradient is reduced over."""
    matrix: bool
    weight: bool
    """True if ZeRO shards it: a weight of a linear layer or a token table."""
    table: bool


def local_parameters(shapes: LocalShapes, layers: range) -> list[LocalParameter]:
    """List the parameters of a virtual stage as shards of one of its ranks, in the model's
    order."""
    return [
        _piece(shapes, parameter)
        for parameter in parameters(GPTConfig.of(shapes.settings.model), shapes.mode, layers)
    ]


def _piece(shapes: LocalShapes, parameter: Parameter) -> LocalParameter:
    matrix = len(parameter.shape) == 2
    weight = matrix and parameter.name != POSITIONS
    table = parameter.name.startswith(("wte", "lm_head"))
    spec = shapes.zero_spec(parameter.spec, 1 if table else 0) if weight else parameter.spec
    rows, *columns = map(shapes.width, parameter.shape, spec)
    return LocalParameter(
        entries=(shapes.table_rows if table else rows) * prod(columns),
        summed=shapes.summed_axes(spec),
        matrix=matrix,
        weight=weight,
        table=table,
    )


@dataclass(frozen=True, kw_only=True)
class LocalState:
    """The training state of one rank: the layers of its virtual stages, and their parameters."""

    shapes: LocalShapes
    ranges: Sequence[range]
    chunks: Sequence[Sequence[LocalParameter]]

    @classmethod
    def of(cls, shapes: LocalShapes, ranges: Sequence[range]) -> LocalState:
        """Build the state of a rank with these layers."""
        return cls(
            shapes=shapes,
            ranges=ranges,
            chunks=[local_parameters(shapes, layers) for layers in ranges],
        )

    @property
    def _model(self) -> ModelSettings:
        return self.shapes.settings.model

    @cached_property
    def parameters(self) -> int:
        """Entries of all parameters."""
        return sum(parameter.entries for parameter in chain(*self.chunks))

    @cached_property
    def between_steps(self) -> dict[MemoryKind, int]:
        """Bytes on the device at the start of a step; only gradients in buckets exist then."""
        shapes, size = self.shapes, self.shapes.parameter
        on_device = [
            parameter
            for parameter in chain(*self.chunks)
            if not (parameter.weight and shapes.weights_on_host)
        ]
        parameters = sum(
            parameter.entries
            for parameter in on_device
            if not (parameter.weight and shapes.reads_weights_from_disk)
        )
        states = self.states * sum(parameter.entries for parameter in on_device)
        if shapes.settings.zero.offload == "nvme" and shapes.device == "cpu":
            states = 0
        return {
            MemoryKind.PARAMETERS: size * parameters,
            MemoryKind.GRADIENTS: size
            * sum(parameter.entries for parameter in on_device if parameter.summed),
            MemoryKind.OPTIMIZER: size * states,
        }

    @cached_property
    def states(self) -> int:
        """Number of optimizer state tensors per parameter."""
        return states_of(self.shapes.settings.optimizer)

    @cached_property
    def weights(self) -> list[LocalWeight]:
        """Weights of linear layers and tables as they are used, in the order of their gradients."""
        block, ends, model = (
            BlockMemory(shapes=self.shapes),
            EmbeddingHeadMemory(shapes=self.shapes),
            self._model,
        )
        layer = [linear.weight for linear in (*reversed(block.mlp), *reversed(block.attention))]
        weights = list[LocalWeight]()
        for layers in reversed(self.ranges):
            first, last = layers.start == 0, layers.stop == model.n_layer
            weights += [ends.head.weight] * last + layer * len(layers)
            weights += [ends.table] * (first and not (last and model.tie_embeddings))
        return weights

    @property
    def kept_weights(self) -> int:
        """Bytes of weights that are cached in the compute type for a step: those gathered by ZeRO
        stages 1 and 2, or the rank's own shards."""
        shapes = self.shapes
        if shapes.keeps_weights:
            entries = sum(shapes.gathered_entries(weight) for weight in self.weights)
        elif shapes.caches_shards and (shapes.casts or shapes.weights_on_host):
            entries = sum(weight.shard_entries(shapes.zero_ranks) for weight in self.weights)
        else:
            entries = 0
        return entries * shapes.compute

    @cached_property
    def vectors(self) -> list[int]:
        """Bytes of gradients of biases and norms that are in no bucket, by virtual stage."""
        size = self.shapes.parameter
        return [
            size
            * sum(
                parameter.entries
                for parameter in chunk
                if not parameter.matrix and not parameter.summed
            )
            for chunk in self.chunks
        ]

    @cached_property
    def buckets(self) -> list[BucketShape]:
        """Gradients as they are reduced over ranks (engine/training/gradients.py)."""
        size, buckets = self.shapes.parameter, list[BucketShape]()
        filling: dict[tuple[str, ...], int] = {}
        for parameter in reversed(list(chain(*self.chunks))):
            if not parameter.summed:
                continue
            number = filling.get(parameter.summed)
            if number is None or buckets[number].entries * size > BUCKET_BYTES:
                number = filling[parameter.summed] = len(buckets)
                buckets.append(BucketShape(axes=parameter.summed, entries=0))
            grown = buckets[number].entries + parameter.entries
            buckets[number] = BucketShape(axes=parameter.summed, entries=grown)
        return buckets

    @property
    def sums(self) -> int:
        """Bytes of all ranks' gradients, which gloo's pairs buffer until they are summed."""
        if not self.shapes.uses_gloo_pairs or not self.buckets:
            return 0
        size = self.shapes.parameter
        terms = [
            bucket.entries
            * size
            * (self.shapes.collective_axis(bucket.axes[0]).size if small else 1)
            for bucket in self.buckets
            for small in [bucket.entries * size <= SMALL_BYTES]
        ]
        return sum(terms) + max(terms) // 2

    @property
    def tied(self) -> int:
        """Bytes of a tied table's gradient, which the first and last stage exchange."""
        if not self._model.tie_embeddings or self.shapes.layout.pipeline == 1:
            return 0
        return self.shapes.parameter * sum(
            parameter.entries for parameter in chain(*self.chunks) if parameter.table
        )

    def off_device(self) -> dict[str, int]:
        """Return the bytes of offloaded weights, gradients and states: in ``host`` memory, if that
        is not the device's own, and on the ``nvme`` disk."""
        shapes, zero = self.shapes, self.shapes.settings.zero
        weights = shapes.parameter * sum(
            parameter.entries for parameter in chain(*self.chunks) if parameter.weight
        )
        everything = shapes.parameter * self.parameters
        if not shapes.offloads:
            return {}
        states = self.states * (weights if shapes.weights_on_host else everything)
        disk = {
            "states": states if zero.offload == "nvme" else 0,
            "weights": weights if zero.offload_params == "nvme" else 0,
        }
        on_disk = sum(disk.values())
        passing = min(zero.nvme_buffer, on_disk) + min(zero.nvme_buffer, disk["weights"])
        host = 2 * weights + states - on_disk + passing if shapes.weights_on_host else passing
        return {"host": host, "nvme": on_disk}
