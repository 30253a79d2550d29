"""What matmuls and their weights allocate (models/parallel/matmul.py, zero.py)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from engine.estimate.ledger import Ledger, MemoryKind
from engine.estimate.local_shapes import CollectiveAxis, LocalLinear, LocalShapes, LocalWeight


class ForwardMode(Enum):
    """What a forward pass of a block leaves: nothing; the outputs of matmuls and attention
    (selective checkpointing); or all that its backward pass needs. It may be run again for that,
    from those outputs or from x alone, and then ends as soon as nothing more is needed."""

    NOTHING = auto()
    MATMULS = auto()
    ALL = auto()
    RECOMPUTE = auto()
    RECOMPUTE_FROM_MATMULS = auto()

    @property
    def keeps(self) -> bool:
        """Whether backward can follow."""
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
    """x -> y, which stays as ``out``. What was gathered lives as long as the product is made, or
    for the backward pass too where that is set."""
    gathered = gathered_x(ledger, shapes, linear) + gather_weight(ledger, shapes, linear.weight)
    product, y = linear.partial_y * shapes.compute, linear.y * shapes.compute
    if linear.axis_y.size == 1:
        if mode == ForwardMode.RECOMPUTE_FROM_MATMULS:
            ledger.recategorise(MemoryKind.ACTIVATIONS, out, y)
        else:
            ledger.allocate(out, y)
    else:
        where = MemoryKind.ACTIVATIONS if mode.has_matmuls else MemoryKind.BUFFERS
        ledger.allocate(where, 0 if mode == ForwardMode.RECOMPUTE_FROM_MATMULS else product)
        with ledger.temporarily(MemoryKind.BUFFERS, product * shapes.uses_gloo_pairs):
            ledger.allocate(out, y)
        ledger.free(where, 0 if mode == ForwardMode.MATMULS else product)
    if mode.keeps and shapes.settings.keep_gathers:
        ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.ACTIVATIONS, gathered)
    else:
        ledger.free(MemoryKind.BUFFERS, gathered)


def free_matmul_output(
    ledger: Ledger, shapes: LocalShapes, linear: LocalLinear, mode: ForwardMode
) -> None:
    """y of a product is needed no more; it stays where it is what a selective checkpoint keeps."""
    y = linear.y * shapes.compute
    if mode == ForwardMode.MATMULS and linear.axis_y.size == 1:
        ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.ACTIVATIONS, y)
    else:
        ledger.free(MemoryKind.BUFFERS, y)


def linear_backward(
    ledger: Ledger, shapes: LocalShapes, linear: LocalLinear, *, first: bool, later: bool = False
) -> None:
    """dy -> dx, both among the buffers, and dw, or ``later`` what it takes to compute that. A
    ``first`` dw becomes the weight's gradient, others are added to it. x is the caller's to free.
    """
    c, kept = shapes.compute, shapes.settings.keep_gathers
    dy = linear.partial_y * c if linear.axis_y.size > 1 else 0
    ledger.allocate(MemoryKind.BUFFERS, dy)
    weight = 0 if kept else gather_weight(ledger, shapes, linear.weight)
    scattered(ledger, shapes, linear.x, linear.axis_x.size, c, copied=linear.on_hidden)
    if later:
        ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.ACTIVATIONS, dy or linear.y * c)
        ledger.free(MemoryKind.BUFFERS, weight + (linear.y * c if dy else 0))
        return
    _weight_gradient(ledger, shapes, linear, first=first)
    ledger.free(MemoryKind.BUFFERS, dy + weight + linear.y * c)
    if kept:
        ledger.free(MemoryKind.ACTIVATIONS, kept_gathers(shapes, linear))


def weight_later(ledger: Ledger, shapes: LocalShapes, linear: LocalLinear, *, first: bool) -> int:
    """dw, of x and what ``linear_backward`` kept for it. Bytes of the latter, for the caller to
    free when all weights are done."""
    _weight_gradient(ledger, shapes, linear, first=first)
    kept = kept_gathers(shapes, linear) if shapes.settings.keep_gathers else 0
    return linear.partial_y * shapes.compute + kept


def kept_gathers(shapes: LocalShapes, linear: LocalLinear) -> int:
    """Bytes of gathered x and w that ``keep_gathers`` keeps."""
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
    """all_gather_a(x): bytes that are now held, none where x is already whole."""
    if linear.axis_x.size == 1:
        return 0
    size = linear.gathered_x * shapes.compute
    # Blocks of features are copied into place, blocks of tokens lie there.
    return ledger.chain(MemoryKind.BUFFERS, size, size if linear.on_hidden else 0)


def gather_weight(ledger: Ledger, shapes: LocalShapes, weight: LocalWeight) -> int:
    """A weight as it is multiplied: bytes that are now held, none where it is at hand.

    ZeRO's pieces come together first, at every use in stage 3, then the mode's.
    """
    c, sizes = shapes.compute, list[int]()
    if shapes.zero == 3 or (shapes.zero == 0 and shapes.casts):
        piece = weight.piece(shapes.zero_ranks)
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
    """The gradient of a gathered weight, among the buffers -> what is left on this rank once the
    mode has scattered it, and ZeRO from stage 2 on. ``uncast``: bytes that it was cast from."""
    if weight.axis.size > 1:
        _scatter(
            ledger, shapes, weight, weight.gathered_entries, [(weight.axis, weight.held_entries)]
        )
    ledger.free(MemoryKind.BUFFERS, uncast)
    if shapes.zero >= 2:
        _scatter(ledger, shapes, weight, weight.held_entries, shapes.shares(weight))


def accumulate(ledger: Ledger, shapes: LocalShapes, weight: LocalWeight, *, first: bool) -> None:
    """What was settled becomes the weight's gradient, where it is the ``first`` and there is no
    bucket; else it is added to it. It leaves the device where the weight is not there."""
    size, waits = reduced_gradient_bytes(shapes, weight), shapes.zero == 1
    if first and (waits or not (weight.summed or shapes.weights_on_host)):
        ledger.recategorise(MemoryKind.BUFFERS, MemoryKind.GRADIENTS, size)
    else:
        ledger.free(MemoryKind.BUFFERS, size)


def reduced_gradient_bytes(shapes: LocalShapes, weight: LocalWeight) -> int:
    """Bytes that ``reduce_gradient`` leaves."""
    entries = weight.piece(shapes.zero_ranks) if shapes.zero >= 2 else weight.held_entries
    return entries * shapes.parameter


def reduce_at_step_end(ledger: Ledger, shapes: LocalShapes, weight: LocalWeight) -> None:
    """ZeRO's stage 1 at the end of a step: the whole gradient is scattered."""
    piece = weight.piece(shapes.zero_ranks) * shapes.parameter
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
    cuts: Sequence[tuple[CollectiveAxis, int]],
) -> None:
    """The ``whole`` gradient's entries over one axis after the other, each of which leaves fewer.
    What came before the last piece is held until that is there."""
    held, freed = whole * shapes.parameter, 0
    for axis, left in cuts:
        piece = left * shapes.parameter
        even = axis.size * piece  # where pieces do not divide the whole, it is padded first
        copies = even * (weight.columns + shapes.uses_gloo_pairs) + (even if even > held else 0)
        with ledger.temporarily(MemoryKind.BUFFERS, copies):
            ledger.allocate(MemoryKind.BUFFERS, piece)
        held, freed = piece, freed + held
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
    """A product whose sum over ``ranks`` is scattered; this rank's ``piece`` of entries is held as
    ``kind``. Features are ``copied`` into blocks first, and gloo's pairs hold all ranks' terms at
    once."""
    if ranks == 1:
        ledger.allocate(kind, piece * entry)
        return
    whole = ranks * piece * entry
    with ledger.temporarily(MemoryKind.BUFFERS, whole * (1 + copied + shapes.uses_gloo_pairs)):
        ledger.allocate(kind, piece * entry)
