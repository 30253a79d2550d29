"""The processor of this machine. No torch."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The vendor and the name of a processor, as in /proc/cpuinfo."""

    vendor: str
    """Such as 'AuthenticAMD' or 'GenuineIntel'; '' if unknown."""
    name: str


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def this_processor(cpuinfo: Path = CPUINFO) -> Processor:
    """Read the vendor and the name of this machine's processor from ``cpuinfo``."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    return Processor(
        vendor=fields.get("vendor_id", ""), name=fields.get("model name", "unknown processor")
    )
