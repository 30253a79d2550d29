"""Assignment of ranks to devices, and the choice of the communication backend. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import UserError
from engine.formatting import format_ranks


@dataclass(frozen=True, kw_only=True)
class VisibleGpus:
    """The GPUs that a rank sees, by their unique ids, and the name of its machine."""

    host: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DeviceAssignment:
    """Devices of all ranks, and the communication backend; tuples have an entry per rank."""

    local_ranks: tuple[int, ...]
    """Number of the rank among the ranks of its machine."""
    local_sizes: tuple[int, ...]
    """Number of ranks on the rank's machine."""
    gpus: tuple[int | None, ...]
    """Index of the rank's GPU among the GPUs that the rank sees; None: the rank computes on the
    CPU."""
    backend: str
    warnings: tuple[str, ...] = ()


def assign_devices(
    visible: Sequence[VisibleGpus], requested: str | None = None, *, nccl: bool = True
) -> DeviceAssignment:
    """Assign GPUs to ranks, and choose the backend: ``requested`` if given, else NCCL if each rank
    has a GPU of its own, else gloo. ``nccl``: the installed torch includes NCCL.

    Raises:
        UserError: NCCL is requested, but ranks have no GPU or share one.
    """
    on_machine: Counter[str] = Counter()
    local_ranks = []
    for card in visible:
        local_ranks.append(on_machine[card.host])
        on_machine[card.host] += 1

    without = [rank for rank, card in enumerate(visible) if not card.gpus]
    warnings = []
    gpus: list[int | None] = [None] * len(visible)
    sharing: list[int] = []
    if not without:
        gpus = [n % len(card.gpus) for n, card in zip(local_ranks, visible, strict=True)]
        mine = [card.gpus[n % len(card.gpus)] for n, card in zip(local_ranks, visible, strict=True)]
        sharing = [rank for rank, gpu in enumerate(mine) if mine.count(gpu) > 1]
        if sharing:
            text = f"{format_ranks(sharing)} share GPUs, which is slow"
            warnings.append(
                text if requested else f"{text}, and NCCL refuses: gloo carries messages"
            )
    elif len(without) < len(visible):
        warnings.append(f"{format_ranks(without)} found no GPU: all ranks compute on CPUs")
    if requested == "nccl" and (without or sharing):
        fault = (
            f"{format_ranks(without)} found none"
            if without
            else f"{format_ranks(sharing)} share one"
        )
        raise UserError(
            f"backend='nccl' needs a GPU for each rank, and {fault}; use backend='gloo'"
        )
    gpu_per_rank = not without and not sharing
    return DeviceAssignment(
        local_ranks=tuple(local_ranks),
        local_sizes=tuple(on_machine[card.host] for card in visible),
        gpus=tuple(gpus),
        backend=requested or ("nccl" if gpu_per_rank and nccl else "gloo"),
        warnings=tuple(warnings),
    )
