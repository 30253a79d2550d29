"""cuboid settings, compared with the schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.config.aliases import ALIASES
from engine.config.ignored_keys import IGNORED_KEYS
from engine.config.other_trainers import SYNONYMS
from engine.config.schema import all_settings, user_name
from engine.config.sections.optimizer import OptimizerSettings
from launch import cli
from launch.settings_pages import names_page, settings_page


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """Return name -> rest of the line, of each setting listed."""
    assert cli.main(["settings", *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " = " in line]
    return dict(line.split(" = ", 1) for line in lines)


def test_every_setting_is_listed_once_by_its_user_name(capsys):
    found = listed(capsys)
    assert sorted(found) == sorted(user_name(name) for name in all_settings())
    assert {"BATCH_SIZE", "optimizer.lr", "model.type"} <= set(found)


def test_line_has_default_meaning_and_accepted_values(capsys):
    (line,) = (rest for name, rest in listed(capsys).items() if name == "optimizer.eps")
    default, comment = line.split("  # ")
    assert float(default) == OptimizerSettings().eps
    assert comment == "added to Adam's denominator (float >= 0)"


def test_words_select_the_listed_settings(capsys):
    found = listed(capsys, "optimizer", "LR")
    assert "optimizer.lr" in found
    assert "optimizer.eps" not in found
    assert cli.main(["settings", "xyzzy"]) == 2
    assert "no setting matches xyzzy" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["BATCH_SIZE", "SEQ_LEN"])
def test_setting_without_default_shows_dots(capsys, name):
    assert listed(capsys)[name].startswith("... ")


DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(
    ("option", "page"), [("--markdown", "settings.md"), ("--names", "names.md")]
)
def test_page_in_docs_is_current(capsys, option, page):
    """To update it: cuboid settings --markdown > docs/settings.md"""
    assert cli.main(["settings", option]) == 0
    assert capsys.readouterr().out == (DOCS / page).read_text(encoding="utf-8")


def test_names_page_has_every_foreign_name():
    page = names_page()
    own = {user_name(name) for name in all_settings()}
    for name in [*({*ALIASES} - own), *IGNORED_KEYS, *" ".join(SYNONYMS.values()).split()]:
        assert f"`{name}`" in page
    assert "| `fp16.mode` | `precision` |" in page
    assert "| `model.num_layers` | `model.n_layer` |" in page


def test_settings_are_listed_below_the_heading_of_their_section(capsys):
    assert cli.main(["settings"]) == 0
    section = ""
    for line in filter(None, capsys.readouterr().out.splitlines()):
        if line.startswith("# "):
            section = line[2:].partition(":")[0]
        else:
            assert line.partition(" = ")[0].rpartition(".")[0] == section


def test_foreign_names_find_settings_and_typos_get_a_hint(capsys):
    assert "clip_grad_norm" in listed(capsys, "grad-clip")
    assert cli.main(["settings", "optimiser"]) == 2
    assert "did you mean optimizer?" in capsys.readouterr().err


def test_settings_page_has_every_setting_with_values_default_and_meaning():
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]
    cells = {row.split(" | ")[0].strip("| `"): row.split(" | ")[1:] for row in rows}
    assert len(cells) == len(rows)
    assert cells.keys() == {user_name(name) for name in all_settings()}
    assert all(len(row) == 3 and all(row) for row in cells.values())
    takes, default, meaning = cells["optimizer.eps"]
    assert (takes, float(default.strip("`"))) == ("float &gt;= 0", OptimizerSettings().eps)
    assert meaning.startswith("added to Adam's denominator")


def test_page_with_words_is_rejected(capsys):
    assert cli.main(["settings", "--markdown", "lr"]) == 2
    assert "--markdown and --names print all settings; pass no WORD" in capsys.readouterr().err


def test_terminal_shows_the_meaning_below_the_name(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["settings", "optimizer.eps"]) == 0
    plain = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert [line.rstrip() for line in plain.splitlines()] == [
        "# optimizer: The optimizer.",
        "optimizer.eps = 1e-08",
        "    added to Adam's denominator (float >= 0)",
    ]
