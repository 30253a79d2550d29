"""Every config with bad settings is rejected with exactly the messages of its .txt file."""

from pathlib import Path

import pytest

from engine.config.fields import accepts
from engine.config.schema import all_settings
from engine.errors import ConfigError
from engine.plan import make_plan
from models.parallel.registry import modes
from models.presets import PRESETS

FOLDER = Path(__file__).parents[2] / "bad_configs" / "settings"
BAD = sorted(FOLDER.glob("*.py"))


def expected(path: Path) -> str:
    """Return the messages with the names of the registries filled in: a new mode must not break
    them."""
    text = path.with_suffix(".txt").read_text().strip()
    for name, field in all_settings().items():
        text = text.replace(f"<{name}>", accepts(field))
    parallel = ", ".join(repr(name) for name in modes() if name != "serial")
    return text.replace("<tensor-parallel modes>", parallel).replace("<presets>", str(len(PRESETS)))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_settings_are_rejected_with_their_messages(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)
    with pytest.raises(ConfigError) as error:
        make_plan(path.name, gpus=None, environ={})
    assert str(error.value) == expected(path)


def test_every_bad_file_has_its_messages() -> None:
    assert {path.stem for path in BAD} == {path.stem for path in FOLDER.glob("*.txt")}
