"""What matmuls and their weights allocate (models/parallel/matmul.py, zero.py)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from engine.estimate.ledger import Kind, Ledger
from engine.estimate.local_shapes import Linear, Local, Over, Weight


class Pass(Enum):
    """What a forward pass of a block leaves: nothing; the outputs of matmuls and attention
    (selective checkpointing); or all that its backward pass needs. It may be run again for that,
    from those outputs or from x alone, and then ends as soon as nothing more is needed."""

    NOTHING = auto()
    PRODUCTS = auto()
    ALL = auto()
    AGAIN = auto()
    AGAIN_FROM_PRODUCTS = auto()

    @property
    def keeps(self) -> bool:
        """Whether backward can follow."""
        return self not in (Pass.NOTHING, Pass.PRODUCTS)

    @property
    def again(self) -> bool:
        return self in (Pass.AGAIN, Pass.AGAIN_FROM_PRODUCTS)

    @property
    def has_products(self) -> bool:
        return self in (Pass.PRODUCTS, Pass.AGAIN_FROM_PRODUCTS)


def linear_forward(
    ledger: Ledger, local: Local, linear: Linear, run: Pass, out: Kind = Kind.BUFFERS
) -> None:
    """x -> y, which stays as ``out``. What was gathered lives as long as the product is made, or
    for the backward pass too where that is set."""
    gathered = gathered_x(ledger, local, linear) + use(ledger, local, linear.weight)
    product, y = linear.partial_y * local.compute, linear.y * local.compute
    if linear.over_y.size == 1:
        if run == Pass.AGAIN_FROM_PRODUCTS:
            ledger.become(Kind.ACTIVATIONS, out, y)
        else:
            ledger.hold(out, y)
    else:
        where = Kind.ACTIVATIONS if run.has_products else Kind.BUFFERS
        ledger.hold(where, 0 if run == Pass.AGAIN_FROM_PRODUCTS else product)
        with ledger.during(Kind.BUFFERS, product * local.direct):
            ledger.hold(out, y)
        ledger.drop(where, 0 if run == Pass.PRODUCTS else product)
    if run.keeps and local.settings.keep_gathers:
        ledger.become(Kind.BUFFERS, Kind.ACTIVATIONS, gathered)
    else:
        ledger.drop(Kind.BUFFERS, gathered)


def free_product(ledger: Ledger, local: Local, linear: Linear, run: Pass) -> None:
    """y of a product is needed no more; it stays where it is what a selective checkpoint keeps."""
    y = linear.y * local.compute
    if run == Pass.PRODUCTS and linear.over_y.size == 1:
        ledger.become(Kind.BUFFERS, Kind.ACTIVATIONS, y)
    else:
        ledger.drop(Kind.BUFFERS, y)


def linear_backward(
    ledger: Ledger, local: Local, linear: Linear, *, first: bool, later: bool = False
) -> None:
    """dy -> dx, both among the buffers, and dw, or ``later`` what it takes to compute that. A
    ``first`` dw becomes the weight's gradient, others are added to it. x is the caller's to free.
    """
    c, kept = local.compute, local.settings.keep_gathers
    dy = linear.partial_y * c if linear.over_y.size > 1 else 0
    ledger.hold(Kind.BUFFERS, dy)
    weight = 0 if kept else use(ledger, local, linear.weight)
    scattered(ledger, local, linear.x, linear.over_x.size, c, copied=linear.on_hidden)
    if later:
        ledger.become(Kind.BUFFERS, Kind.ACTIVATIONS, dy or linear.y * c)
        ledger.drop(Kind.BUFFERS, weight + (linear.y * c if dy else 0))
        return
    _weight_gradient(ledger, local, linear, first=first)
    ledger.drop(Kind.BUFFERS, dy + weight + linear.y * c)
    if kept:
        ledger.drop(Kind.ACTIVATIONS, kept_gathers(local, linear))


def weight_later(ledger: Ledger, local: Local, linear: Linear, *, first: bool) -> int:
    """dw, of x and what ``linear_backward`` kept for it. Bytes of the latter, for the caller to
    free when all weights are done."""
    _weight_gradient(ledger, local, linear, first=first)
    kept = kept_gathers(local, linear) if local.settings.keep_gathers else 0
    return linear.partial_y * local.compute + kept


def kept_gathers(local: Local, linear: Linear) -> int:
    """Bytes of gathered x and w that ``keep_gathers`` keeps."""
    trial = Ledger()
    return gathered_x(trial, local, linear) + use(trial, local, linear.weight)


def _weight_gradient(ledger: Ledger, local: Local, linear: Linear, *, first: bool) -> None:
    x = 0 if local.settings.keep_gathers else gathered_x(ledger, local, linear)
    weight = linear.weight
    uncast = weight.gathered * local.compute if local.casts else 0
    ledger.hold(Kind.BUFFERS, uncast + weight.gathered * local.parameter)
    settle(ledger, local, weight, uncast)
    accumulate(ledger, local, weight, first=first)
    ledger.drop(Kind.BUFFERS, x)


def gathered_x(ledger: Ledger, local: Local, linear: Linear) -> int:
    """all_gather_a(x): bytes that are now held, none where x is already whole."""
    if linear.over_x.size == 1:
        return 0
    size = linear.gathered_x * local.compute
    # Blocks of features are copied into place, blocks of tokens lie there.
    return ledger.chain(Kind.BUFFERS, size, size if linear.on_hidden else 0)


def use(ledger: Ledger, local: Local, weight: Weight) -> int:
    """A weight as it is multiplied: bytes that are now held, none where it is at hand.

    ZeRO's pieces come together first, at every use in stage 3, then the mode's.
    """
    c, sizes = local.compute, list[int]()
    if local.zero == 3 or (local.zero == 0 and local.casts):
        piece = weight.piece(local.shared)
        sizes.append(piece * local.parameter if local.reads else 0)
        fetched = local.casts or local.away
        sizes.append(piece * c if fetched and not local.keeps_pieces else 0)
        for over, share in reversed(local.shares(weight)):
            sizes += [share * over.size * c] * (1 + weight.columns)
    if weight.over.size > 1:
        sizes += [weight.gathered * c] * (1 + weight.columns)
    return ledger.chain(Kind.BUFFERS, *sizes)


def settle(ledger: Ledger, local: Local, weight: Weight, uncast: int = 0) -> None:
    """The gradient of a gathered weight, among the buffers -> what is left on this rank once the
    mode has scattered it, and ZeRO from stage 2 on. ``uncast``: bytes that it was cast from."""
    if weight.over.size > 1:
        _scatter(ledger, local, weight, weight.gathered, [(weight.over, weight.held)])
    ledger.drop(Kind.BUFFERS, uncast)
    if local.zero >= 2:
        _scatter(ledger, local, weight, weight.held, local.shares(weight))


def accumulate(ledger: Ledger, local: Local, weight: Weight, *, first: bool) -> None:
    """What was settled becomes the weight's gradient, where it is the ``first`` and there is no
    bucket; else it is added to it. It leaves the device where the weight is not there."""
    size, waits = settled(local, weight), local.zero == 1
    if first and (waits or not (weight.summed or local.away)):
        ledger.become(Kind.BUFFERS, Kind.GRADIENTS, size)
    else:
        ledger.drop(Kind.BUFFERS, size)


def settled(local: Local, weight: Weight) -> int:
    """Bytes that ``settle`` leaves."""
    entries = weight.piece(local.shared) if local.zero >= 2 else weight.held
    return entries * local.parameter


def finish(ledger: Ledger, local: Local, weight: Weight) -> None:
    """ZeRO's stage 1 at the end of a step: the whole gradient is scattered."""
    piece = weight.piece(local.shared) * local.parameter
    ledger.become(Kind.GRADIENTS, Kind.BUFFERS, weight.held * local.parameter)
    _scatter(ledger, local, weight, weight.held, local.shares(weight))
    if weight.summed or local.away:
        ledger.drop(Kind.BUFFERS, piece)
    else:
        ledger.become(Kind.BUFFERS, Kind.GRADIENTS, piece)


def _scatter(
    ledger: Ledger, local: Local, weight: Weight, whole: int, cuts: Sequence[tuple[Over, int]]
) -> None:
    """The ``whole`` gradient's entries over one axis after the other, each of which leaves fewer.
    What came before the last piece is held until that is there."""
    held, freed = whole * local.parameter, 0
    for over, left in cuts:
        piece = left * local.parameter
        even = over.size * piece  # where pieces do not divide the whole, it is padded first
        copies = even * (weight.columns + local.direct) + (even if even > held else 0)
        with ledger.during(Kind.BUFFERS, copies):
            ledger.hold(Kind.BUFFERS, piece)
        held, freed = piece, freed + held
    ledger.drop(Kind.BUFFERS, freed)


def scattered(
    ledger: Ledger,
    local: Local,
    piece: int,
    ranks: int,
    entry: int,
    *,
    kind: Kind = Kind.BUFFERS,
    copied: bool = False,
) -> None:
    """A product whose sum over ``ranks`` is scattered; this rank's ``piece`` of entries is held as
    ``kind``. Features are ``copied`` into blocks first, and gloo's pairs hold all ranks' terms at
    once."""
    if ranks == 1:
        ledger.hold(kind, piece * entry)
        return
    whole = ranks * piece * entry
    with ledger.during(Kind.BUFFERS, whole * (1 + copied + local.direct)):
        ledger.hold(kind, piece * entry)
