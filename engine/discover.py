"""Which modules a room of a registry holds, without importing any of them."""

from __future__ import annotations

import importlib.util
import pkgutil


def module_names(package: str) -> list[str]:
    """The modules directly in ``package`` (a dotted name), sorted; none is imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not a package"
    return sorted(module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
