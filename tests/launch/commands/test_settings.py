"""cuboid settings against the schema itself."""

from __future__ import annotations

import pytest

from engine.config.schema import Optimizer, all_settings, user_name
from launch import cli


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """Name -> the rest of its line."""
    assert cli.main(["settings", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    return dict(line.split(" = ", 1) for line in lines)


def test_every_setting_is_there_once_by_the_users_name(capsys):
    found = listed(capsys)
    assert list(found) == [user_name(name) for name in all_settings()]
    assert {"BATCH_SIZE", "optimizer.lr", "model.type"} <= set(found)


def test_a_line_has_default_meaning_and_what_it_takes(capsys):
    (line,) = (rest for name, rest in listed(capsys).items() if name == "optimizer.eps")
    default, comment = line.split("  # ")
    assert float(default) == Optimizer().eps
    assert comment == "added to Adam's denominator (float >= 0)"


def test_words_choose_lines(capsys):
    found = listed(capsys, "optimizer", "LR")
    assert "optimizer.lr" in found
    assert "optimizer.eps" not in found
    assert cli.main(["settings", "xyzzy"]) == 2
    assert "no setting is about xyzzy" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["BATCH_SIZE", "SEQ_LEN"])
def test_what_must_be_given_shows_dots(capsys, name):
    assert listed(capsys)[name].startswith("... ")
