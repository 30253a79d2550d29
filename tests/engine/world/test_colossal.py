"""Import of Colossal-AI: its extent, and the messages if it fails."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from engine.errors import UserError
from engine.world import colossal

IMPORT = """
import sys
from engine.world.colossal import ColossalContext
context = ColossalContext().context
assert ColossalContext().context is context
heavy = {"peft", "transformers", "bitsandbytes", "galore_torch", "colossalai.booster"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert "colossalai" not in sys.modules, "an empty stand-in was left behind"
from colossalai.legacy.core import global_context
assert global_context is context
"""


def test_importing_colossalai_loads_only_its_context() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True)


def test_missing_colossalai_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(colossal, "version", version)
    with pytest.raises(UserError, match=r"^Colossal-AI is not installed; pip install --no-deps"):
        colossal.ColossalContext()


def test_wrong_version_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colossal, "version", lambda name: "0.4.0")
    with pytest.raises(UserError, match=r"0\.4\.0 is installed, 0\.5\.0 is needed; pip install"):
        colossal.ColossalContext()


def test_installation_without_files_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colossal, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="cannot be imported") as caught:
        colossal.ColossalContext()
    assert "\n" not in str(caught.value)
