"""Allocations of matmuls and their weights (models/parallel/matmul.py, zero.py)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from engine.estimate.ledger import Ledger, MemoryKind
from engine.estimate.local_shapes import CollectiveAxis, LocalLinear, LocalShapes, LocalWeight


class ForwardMode(Enum):
    """What a block's forward pass saves, or, if it is a recomputation, what it recomputes from."""

    NOTHING = auto()
    """Activation checkpointing: x only."""
    MATMULS = auto()
    """Selective checkpointing: x and the outputs of matmuls and attention."""
    ALL = auto()
    """Everything that the backward pass needs."""
    RECOMPUTE = auto()
    """Recompute everything from x, just before the backward pass."""
    RECOMPUTE_FROM_MATMULS = auto()
    """Recompute the rest from the outputs of matmuls and attention."""

    @property
    def keeps(self) -> bool:
        """True if the forward pass saves all that a backward pass needs."""
        return self not in (ForwardMode.NOTHING, ForwardMode.MATMULS)

    @property
    def recomputes(self) -> bool:
        return self in (ForwardMode.RECOMPUTE, ForwardMode.RECOMPUTE_FROM_MATMULS)

    @property
    def has_matmuls(self) -> bool:
        return self in (ForwardMode.MATMULS, ForwardMode.RECOMPUTE_FROM_MATMULS)


def linear_forward(
    ledger: Ledger,
    shapes: LocalShapes,
    linear: LocalLinear,
    mode: ForwardMode,
    out: MemoryKind = MemoryKind.BUFFERS,
) -> None:
    """Simulate a linear layer's forward pass from x to y, which remains and counts as ``out``.
    Gathered tensors are freed after the matmul or, with keep_gathers, after the backward pass."""
    gathered = gathered_x(ledger, shapes, linear) + gather_weight(ledger, shapes, linear.weight)
    product, y = linear.partial_y * shapes.compute, linear.y * shapes.compute
    if linear.axis_y.size == 1:
        if mode == ForwardMode.RECOMPUTE_FROM_MATMULS:
            ledger.recategorise(MemoryKind.ACTIVATIONS, out, y)
        else:
            ledger.allocate(out, y)
    else:
        kind = MemoryKind.ACTIVATIONS if mode.has_matmuls else MemoryKind.BUFFERS
        ledger.allocate(kind, 0 if mode == ForwardMode.RECOMPUTE_FROM_MATMULS else product)
        with ledger.temporarily(MemoryKind.BUFFERS, product * shapes.uses_gloo_pairs):
            ledger.allocate(out, y)
        ledger.free(kind, 0 if mode == ForwardMode.MATMULS else product)
    if mode.keeps and shapes.settings.keep_gathers:
        ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.ACTIVATIONS, gathered)
    else:
        ledger.free(MemoryKind.BUFFERS, gathered)


def free_matmul_output(
    ledger: Ledger, shapes: LocalShapes, linear: LocalLinear, mode: ForwardMode
) -> None:
    """Free the output y of ``linear``, unless selective checkpointing saves y."""
    y = linear.y * shapes.compute
    if mode == ForwardMode.MATMULS and linear.axis_y.size == 1:
        ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.ACTIVATIONS, y)
    else:
        ledger.free(MemoryKind.BUFFERS, y)


def linear_backward(
    ledger: Ledger, shapes: LocalShapes, linear: LocalLinear, *, first: bool, later: bool = False
) -> None:
    """Simulate a linear layer's backward pass from dy to dx, both counted as buffers, and to dw.

    ``first``: dw becomes the weight's gradient; otherwise dw is added to that gradient. ``later``:
    dw is deferred, and x and dy are saved for it. The caller frees x.
    """
    c, keeps_gathers = shapes.compute, shapes.settings.keep_gathers
    dy = linear.partial_y * c if linear.axis_y.size > 1 else 0
    ledger.allocate(MemoryKind.BUFFERS, dy)
    weight = 0 if keeps_gathers else gather_weight(ledger, shapes, linear.weight)
    scattered(ledger, shapes, linear.x, linear.axis_x.size, c, copied=linear.on_hidden)
    if later:
        ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.ACTIVATIONS, dy or linear.y * c)
        ledger.free(MemoryKind.BUFFERS, weight + (linear.y * c if dy else 0))
        return
    _weight_gradient(ledger, shapes, linear, first=first)
    ledger.free(MemoryKind.BUFFERS, dy + weight + linear.y * c)
    if keeps_gathers:
        ledger.free(MemoryKind.ACTIVATIONS, kept_gathers(shapes, linear))


def weight_later(ledger: Ledger, shapes: LocalShapes, linear: LocalLinear, *, first: bool) -> int:
    """Simulate the deferred dw of ``linear``. Return the bytes of dy and of gathered tensors saved
    for dw, which the caller frees after all weight gradients."""
    _weight_gradient(ledger, shapes, linear, first=first)
    gathers = kept_gathers(shapes, linear) if shapes.settings.keep_gathers else 0
    return linear.partial_y * shapes.compute + gathers


def kept_gathers(shapes: LocalShapes, linear: LocalLinear) -> int:
    """Return the bytes of gathered x and w that ``keep_gathers`` saves."""
    trial = Ledger()
    return gathered_x(trial, shapes, linear) + gather_weight(trial, shapes, linear.weight)


def _weight_gradient(
    ledger: Ledger, shapes: LocalShapes, linear: LocalLinear, *, first: bool
) -> None:
    x = 0 if shapes.settings.keep_gathers else gathered_x(ledger, shapes, linear)
    weight = linear.weight
    uncast = weight.gathered_entries * shapes.compute if shapes.casts else 0
    ledger.allocate(MemoryKind.BUFFERS, uncast + weight.gathered_entries * shapes.parameter)
    reduce_gradient(ledger, shapes, weight, uncast)
    accumulate(ledger, shapes, weight, first=first)
    ledger.free(MemoryKind.BUFFERS, x)


def gathered_x(ledger: Ledger, shapes: LocalShapes, linear: LocalLinear) -> int:
    """Simulate the all-gather of x over axis a; return the bytes allocated, 0 if axis a has one
    rank."""
    if linear.axis_x.size == 1:
        return 0
    size = linear.gathered_x * shapes.compute
    # Blocks of features are copied into place; blocks of tokens are already contiguous.
    return ledger.chain(MemoryKind.BUFFERS, size, size if linear.on_hidden else 0)


def gather_weight(ledger: Ledger, shapes: LocalShapes, weight: LocalWeight) -> int:
    """Simulate gathering a weight for a matmul; return the bytes allocated, 0 if it is local.

    The weight is gathered over ZeRO's axes first (here only in stage 3, at every use), then over
    the mode's axis.
    """
    c, sizes = shapes.compute, list[int]()
    if shapes.zero == 3 or (shapes.zero == 0 and shapes.casts):
        piece = weight.shard_entries(shapes.zero_ranks)
        sizes.append(piece * shapes.parameter if shapes.reads_weights_from_disk else 0)
        fetched = shapes.casts or shapes.weights_on_host
        sizes.append(piece * c if fetched and not shapes.caches_shards else 0)
        for axis, share in reversed(shapes.shares(weight)):
            sizes += [share * axis.size * c] * (1 + weight.columns)
    if weight.axis.size > 1:
        sizes += [weight.gathered_entries * c] * (1 + weight.columns)
    return ledger.chain(MemoryKind.BUFFERS, *sizes)


def reduce_gradient(
    ledger: Ledger, shapes: LocalShapes, weight: LocalWeight, uncast: int = 0
) -> None:
    """Simulate the reduce-scatters of a gathered weight's gradient: over the mode's axis and, from
    ZeRO stage 2 on, over ZeRO's axes. This rank's shard remains and counts as a buffer.
    ``uncast``: bytes of the gradient before it is cast, which are freed."""
    if weight.axis.size > 1:
        _scatter(
            ledger, shapes, weight, weight.gathered_entries, [(weight.axis, weight.held_entries)]
        )
    ledger.free(MemoryKind.BUFFERS, uncast)
    if shapes.zero >= 2:
        _scatter(ledger, shapes, weight, weight.held_entries, shapes.shares(weight))


def accumulate(ledger: Ledger, shapes: LocalShapes, weight: LocalWeight, *, first: bool) -> None:
    """Make the reduced gradient the weight's gradient if it is the ``first`` and in no bucket;
    otherwise add it to the weight's gradient and free it, as for an offloaded weight, whose
    gradient leaves the device."""
    size, waits = reduced_gradient_bytes(shapes, weight), shapes.zero == 1
    if first and (waits or not (weight.summed or shapes.weights_on_host)):
        ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.GRADIENTS, size)
    else:
        ledger.free(MemoryKind.BUFFERS, size)


def reduced_gradient_bytes(shapes: LocalShapes, weight: LocalWeight) -> int:
    """Return the bytes of a gradient after ``reduce_gradient``."""
    entries = weight.shard_entries(shapes.zero_ranks) if shapes.zero >= 2 else weight.held_entries
    return entries * shapes.parameter


def reduce_at_step_end(ledger: Ledger, shapes: LocalShapes, weight: LocalWeight) -> None:
    """Simulate the reduce-scatter of a weight's gradient at the end of a step in ZeRO stage 1."""
    piece = weight.shard_entries(shapes.zero_ranks) * shapes.parameter
    ledger.recategorise(
        MemoryKind.GRADIENTS, MemoryKind.BUFFERS, weight.held_entries * shapes.parameter
    )
    _scatter(ledger, shapes, weight, weight.held_entries, shapes.shares(weight))
    if weight.summed or shapes.weights_on_host:
        ledger.free(MemoryKind.BUFFERS, piece)
    else:
        ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.GRADIENTS, piece)


def _scatter(
    ledger: Ledger,
    shapes: LocalShapes,
    weight: LocalWeight,
    whole: int,
    axes: Sequence[tuple[CollectiveAxis, int]],
) -> None:
    """Simulate the reduce-scatters of a gradient of ``whole`` entries over one axis after the
    other. Their inputs are freed when the last one is complete."""
    current, freed = whole * shapes.parameter, 0
    for axis, left in axes:
        piece = left * shapes.parameter
        even = axis.size * piece  # padded first if the shards do not divide it
        copies = even * (weight.columns + shapes.uses_gloo_pairs) + (even if even > current else 0)
        with ledger.temporarily(MemoryKind.BUFFERS, copies):
            ledger.allocate(MemoryKind.BUFFERS, piece)
        current, freed = piece, freed + current
    ledger.free(MemoryKind.BUFFERS, freed)


def scattered(
    ledger: Ledger,
    shapes: LocalShapes,
    piece: int,
    ranks: int,
    entry: int,
    *,
    kind: MemoryKind = MemoryKind.BUFFERS,
    copied: bool = False,
) -> None:
    """Simulate a matmul whose product is reduce-scattered over ``ranks`` ranks. This rank's
    ``piece`` entries, of ``entry`` bytes each, remain and count as ``kind``.

    ``copied``: features are copied into blocks first. gloo's pairs buffer all ranks' terms at once.
    """
    if ranks == 1:
        ledger.allocate(kind, piece * entry)
        return
    whole = ranks * piece * entry
    with ledger.temporarily(MemoryKind.BUFFERS, whole * (1 + copied + shapes.uses_gloo_pairs)):
        ledger.allocate(kind, piece * entry)
