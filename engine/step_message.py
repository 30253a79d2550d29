"""The entries of the message that all ranks sum once per step: float64 numbers, in one all-reduce.

The first numbers are sums over the ranks. Then each rank has an entry of its own in two blocks,
peak memory and the flag "not finite", so that the sum lists the values by rank.
"""

from __future__ import annotations

LOSS, SQUARED_NORM, STOP, SAVE, HOST_MEMORY = range(5)
"""Loss, squared gradient norm, the number of ranks that request a stop or a save, and the peak host
memory in bytes, 0 unless an epoch ends."""
SUMS = 5


def memory_entry(rank: int) -> int:
    """Return the index of the entry for a rank's peak memory in bytes."""
    return SUMS + rank


def non_finite_entry(rank: int, ranks: int) -> int:
    """Return the index of the entry for the flag that a rank's loss or gradient is not finite."""
    return SUMS + ranks + rank


def message_entries(ranks: int) -> int:
    """Return the number of entries of the message."""
    return SUMS + 2 * ranks
