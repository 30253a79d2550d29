"""The command that messages print works in the user's shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.runs.invocation import cuboid


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone as the current folder, with the environment of run.sh."""
    root = tmp_path / "my clone"
    (root / ".venv").mkdir(parents=True)
    (root / "run.sh").touch()
    monkeypatch.chdir(root)
    return root


def test_the_command_is_run_sh_if_its_environment_is_not_active(root, monkeypatch):
    own = str(root / ".venv")
    assert cuboid({}, own, root) == "./run.sh"
    assert cuboid({"VIRTUAL_ENV": "/other"}, own, root) == "./run.sh"
    monkeypatch.chdir(root.parent)
    assert cuboid({}, own, root) == "'./my clone/run.sh'"
    (root.parent / "away").mkdir()
    monkeypatch.chdir(root.parent / "away")
    assert cuboid({}, own, root) == f"'{root}/run.sh'"


def test_the_command_is_cuboid_if_cuboid_is_on_the_path(root):
    own = str(root / ".venv")
    assert cuboid({"VIRTUAL_ENV": own}, own, root) == "cuboid", "activated"
    assert cuboid({"CONDA_PREFIX": "/conda"}, "/conda", root) == "cuboid"
    assert cuboid({}, "/usr", root) == "cuboid"
    (root / "run.sh").unlink()
    assert cuboid({}, own, root) == "cuboid", "installed without run.sh"
