"""Every setting is read by some code: none is accepted and ignored."""

import ast
from functools import cache
from pathlib import Path

import pytest

from engine.config.schema import all_settings
from engine.unsupported import UNSUPPORTED

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "engine" / "config"
RUNNING = [
    path
    for room in ("engine", "launch", "models")
    for path in (ROOT / room).rglob("*.py")
    if CONFIG not in path.parents and path.name != "unsupported.py"
]
RULES = [path for path in (CONFIG / "rules").glob("*.py") if path.name != "unused.py"]
# Sections that training has to refuse for now, each by one setting of NOT_YET.
AWAITED = {"checkpoint": "checkpoint.every", "loss_scale": "precision", "zero": "zero.stage"}


@cache
def attributes(*paths: Path) -> set[str]:
    """Return the names of all attributes that the code of these files reads."""
    return {
        node.attr
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("name", all_settings())
def test_every_setting_is_read_by_the_engine_or_a_rule(name: str) -> None:
    section, _, last = name.rpartition(".")
    read = attributes(*RUNNING, *RULES, CONFIG / "rule_context.py")
    assert last in read or AWAITED.get(section) in UNSUPPORTED
