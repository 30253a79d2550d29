"""cuboid settings against the schema itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.config.schema import Optimizer, all_settings, user_name
from launch import cli
from launch.commands import settings


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


PAGE = Path(__file__).parents[3] / "docs/settings.md"


def test_the_page_in_docs_is_up_to_date(capsys):
    """Otherwise: cuboid settings --markdown > docs/settings.md"""
    assert cli.main(["settings", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8")


def test_the_page_has_every_setting_with_type_default_and_meaning():
    rows = [line for line in settings.markdown().splitlines() if line.startswith("| `")]
    cells = {row.split(" | ")[0].strip("| `"): row.split(" | ")[1:] for row in rows}
    assert len(cells) == len(rows)
    assert cells.keys() == {user_name(name) for name in all_settings()}
    assert all(len(row) == 3 and all(row) for row in cells.values())
    takes, default, meaning = cells["optimizer.eps"]
    assert (takes, float(default.strip("`"))) == ("float &gt;= 0", Optimizer().eps)
    assert meaning.startswith("added to Adam's denominator")


def test_the_page_is_of_all_settings(capsys):
    assert cli.main(["settings", "--markdown", "lr"]) == 2
    assert "--markdown" in capsys.readouterr().err


def test_a_terminal_gets_meaning_below_the_name(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["settings", "optimizer.eps"]) == 0
    plain = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert [line.rstrip() for line in plain.splitlines()] == [
        "optimizer.eps = 1e-08",
        "    added to Adam's denominator (float >= 0)",
    ]
