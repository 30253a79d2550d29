"""The command that starts cuboid from the current folder, for messages to print."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

ROOT = Path(__file__).parents[2]


def cuboid(
    environ: Mapping[str, str] = os.environ, prefix: str = sys.prefix, root: Path = ROOT
) -> str:
    """Return ``cuboid``, or the path of run.sh if the user has no command ``cuboid``: this process
    runs in run.sh's environment (``prefix``), which the user has not activated."""
    script, venv = root / "run.sh", root / ".venv"
    active = environ.get("VIRTUAL_ENV") or environ.get("CONDA_PREFIX")
    if not script.is_file() or not _same(venv, prefix) or (active and _same(venv, active)):
        return "cuboid"
    here = Path.cwd()
    return quote(f"./{script.relative_to(here)}" if script.is_relative_to(here) else str(script))


def _same(one: Path, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
