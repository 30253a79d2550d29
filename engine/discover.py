"""Lists and imports the modules of a package: a new file in the package extends a registry."""

from __future__ import annotations

import importlib.util
import pkgutil
from types import ModuleType


def module_names(package: str) -> list[str]:
    """List the modules directly in ``package`` (a dotted name), sorted; imports none of them."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not a package"
    return sorted(module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))


def load(package: str, name: str) -> ModuleType:
    """Import the module ``name`` of ``package``."""
    return importlib.import_module(f"{package}.{name}")
