"""Every bad file is refused with exactly the lines that stand beside it."""

from pathlib import Path

import pytest

from engine.config.fields import accepts
from engine.config.schema import all_settings
from engine.errors import ConfigError
from engine.plan import make_plan
from models.parallel.registry import modes
from models.presets import PRESETS

ROOM = Path(__file__).parents[2] / "bad_configs" / "settings"
BAD = sorted(ROOM.glob("*.py"))


def expected(path: Path) -> str:
    """The lines, with the names of the registries filled in: a new mode must not break them."""
    text = path.with_suffix(".txt").read_text().strip()
    for name, field in all_settings().items():
        text = text.replace(f"<{name}>", accepts(field))
    parallel = ", ".join(repr(name) for name in modes() if name != "serial")
    return text.replace("<tensor-parallel modes>", parallel).replace("<presets>", str(len(PRESETS)))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_is_refused_with_these_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOM)
    with pytest.raises(ConfigError) as error:
        make_plan(path.name, gpus=None, environ={})
    assert str(error.value) == expected(path)


def test_there_is_a_bad_file_for_every_line_and_a_line_for_every_file() -> None:
    assert {path.stem for path in BAD} == {path.stem for path in ROOM.glob("*.txt")}
