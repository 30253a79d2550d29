"""What a matmul (models/parallel/matmul.py) allocates, forward and backward."""

from __future__ import annotations

from engine.estimate.ledger import Kind, Ledger
from engine.estimate.local import Linear, Local


def linear_forward(
    ledger: Ledger, local: Local, linear: Linear, out: Kind = Kind.BUFFERS, *, keep: bool
) -> None:
    """x -> y, which stays as ``out``. What was gathered lives as long as the product is made, or
    for the backward pass too where that is set and the pass is to ``keep`` anything."""
    gathered = gathered_x(ledger, local, linear) + gathered_w(ledger, local, linear)
    scattered(ledger, local, linear.y, linear.over_y.size, local.compute, kind=out)
    if keep and local.settings.keep_gathers:
        ledger.become(Kind.BUFFERS, Kind.ACTIVATIONS, gathered)
    else:
        ledger.drop(Kind.BUFFERS, gathered)


def linear_backward(ledger: Ledger, local: Local, linear: Linear, *, first: bool) -> None:
    """dy -> dx, both among the buffers, and dw. A ``first`` one becomes the weight's gradient, where
    that is not part of a bucket; others are added to it. x itself is the caller's to free."""
    c, p, kept = local.compute, local.parameter, local.settings.keep_gathers
    dy = linear.partial_y * c if linear.over_y.size > 1 else 0
    with ledger.during(Kind.BUFFERS, dy):
        w = 0 if kept else gathered_w(ledger, local, linear)
        scattered(ledger, local, linear.x, linear.over_x.size, c, copied=linear.on_hidden)
        x = 0 if kept else gathered_x(ledger, local, linear)
        if local.casts:
            ledger.touch(Kind.BUFFERS, linear.gathered_w * (c + p))
        scattered(ledger, local, linear.w, linear.over_w.size, p)
        ledger.drop(Kind.BUFFERS, w + x)
    if kept:
        ledger.drop(Kind.ACTIVATIONS, kept_gathers(local, linear))
    arrive(ledger, linear.w * p, keeps=first and not linear.summed)
    ledger.drop(Kind.BUFFERS, linear.y * c)


def kept_gathers(local: Local, linear: Linear) -> int:
    """Bytes of gathered x and w that ``keep_gathers`` keeps."""
    trial = Ledger()
    return gathered_x(trial, local, linear) + gathered_w(trial, local, linear)


def arrive(ledger: Ledger, size: int, *, keeps: bool) -> None:
    """A gradient among the buffers becomes its parameter's, or is added to one that is there."""
    if keeps:
        ledger.become(Kind.BUFFERS, Kind.GRADIENTS, size)
    else:
        ledger.drop(Kind.BUFFERS, size)


def gathered_x(ledger: Ledger, local: Local, linear: Linear) -> int:
    """all_gather_a(x): bytes that are now held, none where x is already whole."""
    if linear.over_x.size == 1:
        return 0
    size = linear.gathered_x * local.compute
    # Blocks of features are copied into place, blocks of tokens lie there.
    return ledger.chain(Kind.BUFFERS, size, size if linear.on_hidden else 0)


def gathered_w(ledger: Ledger, local: Local, linear: Linear) -> int:
    """all_gather_b(w), cast before: bytes that are now held, none where w is used as it is."""
    cast = linear.w * local.compute if local.casts else 0
    gathered = linear.gathered_w * local.compute if linear.over_w.size > 1 else 0
    return ledger.chain(Kind.BUFFERS, cast, gathered)


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
