"""Names the pinned requirements that an environment of the user's lacks, one a line.

``python -P launch/missing_requirements.py ROOT [EXTRA ...]``, run by run.sh in an environment where
cuboid itself was just installed without its dependencies; standard library and pip only. What is
there in an accepted version is left alone, and torch always is: the environment was chosen for its
torch.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

# pip's own copy: the environment need not have one
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def pins(*files: Path) -> dict[str, str]:
    """Canonical name -> requirement line of pip requirements files."""
    lines = (line.strip() for file in files for line in file.read_text("utf-8").splitlines())
    return {canonicalize_name(Requirement(s).name): s for s in lines if s and s[0] != "#"}


def lacking(requirements: Sequence[str], extras: Sequence[str]) -> Iterator[str]:
    """Canonical names of the requirements, those of ``extras`` too, that are not met here."""
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
    # Colossal-AI cannot be a requirement of the package (setup.py), and another version of it
    # is for the user to judge: only its absence is made good.
    requirements = [*(metadata.requires("cuboid") or ()), "colossalai"]
    for name in lacking(requirements, extras):
        if name != "torch":
            print(pinned[name])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
