"""Prints the pinned requirements that the user's environment lacks, one per line.

``python -P launch/missing_requirements.py ROOT [EXTRA ...]`` is run by run.sh in an environment
where cuboid was just installed without its dependencies; it uses the standard library and pip only.
A package that is installed in an accepted version is not listed, and torch never is: the
environment was chosen for its torch.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

# pip's own copy, because the environment may lack the package
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def pins(*files: Path) -> dict[str, str]:
    """Read pip requirements files; return canonical name -> requirement line."""
    lines = (line.strip() for file in files for line in file.read_text("utf-8").splitlines())
    return {canonicalize_name(Requirement(s).name): s for s in lines if s and s[0] != "#"}


def lacking(requirements: Sequence[str], extras: Sequence[str]) -> Iterator[str]:
    """Yield the canonical names of the requirements that this environment does not meet, including
    the requirements of ``extras``."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        try:
            met = requirement.specifier.contains(metadata.version(requirement.name), True)
        except metadata.PackageNotFoundError:
            met = False
        if not met:
            yield canonicalize_name(requirement.name)


def main(root: Path, extras: Sequence[str]) -> None:
    pinned = pins(root / "requirements.txt", root / "requirements-dev.txt")
    pinned |= pins(root / "requirements-nodeps.txt")
    # Colossal-AI cannot be a requirement of the package (setup.py). It is installed only if it is
    # missing: another version is the user's choice.
    requirements = [*(metadata.requires("cuboid") or ()), "colossalai"]
    for name in lacking(requirements, extras):
        if name != "torch":
            print(pinned[name])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
