"""docs/other-trainers.md: its settings exist, and each flag leads to the setting of its row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.config.aliases import ALIASES
from engine.config.colossalai_values import UnsupportedValueError
from engine.config.ignored_keys import IGNORED_KEYS
from engine.config.lightning_values import STRATEGIES
from engine.config.name_hints import closest
from engine.config.schema import all_settings, user_name
from launch.settings_pages import SAMPLES

PAGE = (Path(__file__).parents[1] / "docs" / "other-trainers.md").read_text(encoding="utf-8")
TRAINERS = PAGE.split("\n## ")[1:]
OWN = {user_name(name) for name in all_settings()}
NAME = re.compile(r"`-*([A-Za-z_][\w.-]*)`")
ROW = re.compile(r"^\| (`.*?) \| ?(.*?) ?\| ?(.*?) ?\|$", re.MULTILINE)
NOT_KEYS = {"DIR", "CONFIG"}  # positional arguments
AMBIGUOUS = {"batch_size"}  # of a rank in one trainer, of all ranks in another


def rows() -> list[tuple[str, set[str]]]:
    """Return each flag of the tables, with the settings of its row."""
    tables = [trainer.split("\nStrategies,")[0] for trainer in TRAINERS]
    return [
        (flag.replace("-", "_"), set(NAME.findall(here)))
        for table in tables
        for flags, here, _ in ROW.findall(table)
        for flag in NAME.findall(flags)
        if flag not in NOT_KEYS
    ]


def settings_of(name: str) -> set[str]:
    """Return the settings that a name sets, or that its hint names; "" if it is explained."""
    if name in OWN:
        return {name}
    meaning = ALIASES.get(name)
    if isinstance(meaning, str):
        return {user_name(meaning)}
    if meaning is not None:
        found = set()
        for value in (*SAMPLES, 0.5, "fsdp"):
            try:
                found |= {*map(user_name, meaning(value))}
            except UnsupportedValueError:
                continue
        return found
    if name in IGNORED_KEYS:
        return set()
    hint = closest(name)
    assert hint, f"{name} has no hint"
    return {setting.partition("=")[0] for setting in hint.settings}


def test_the_page_lists_the_flags_of_four_trainers() -> None:
    assert len(TRAINERS) == 4
    assert len(rows()) > 80
    assert all(any(flag in trainer for trainer in TRAINERS) for flag in ("--epochs", "--strategy"))


@pytest.mark.parametrize(
    ("flag", "settings"),
    rows(),
    ids=lambda item: str(sorted(item) if isinstance(item, set) else item)[:30],
)
def test_a_flag_leads_to_the_setting_of_its_row(flag: str, settings: set[str]) -> None:
    assert settings <= OWN | {"lr_scheduler.eta_min"}, "a setting of the row does not exist"
    found = settings_of(flag)
    if found and settings and flag not in AMBIGUOUS:
        assert found & settings, f"{flag} leads to {found}"


def test_all_names_on_the_page_exist() -> None:
    """Names with a section that is cuboid's."""
    sections = {name.partition(".")[0] for name in OWN if "." in name}
    named = {name for name in NAME.findall(PAGE) if name.partition(".")[0] in sections}
    assert {name for name in named if "." in name} - OWN == {"lr_scheduler.eta_min"}


def test_the_table_of_strategies_is_that_of_the_code() -> None:
    table = PAGE.split("\nStrategies,")[1].split("\n## ")[0]
    listed: dict[str, dict[str, object]] = {}
    for line in table.splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[1].isdigit():
            for name in cells[0].replace("`", "").split(", "):
                listed[name] = {
                    "zero.stage": int(cells[1]),
                    "zero.offload": cells[2] or None,
                    "zero.offload_params": cells[3] or None,
                }
    assert listed == {
        name: {
            key: settings.get(key) for key in ("zero.stage", "zero.offload", "zero.offload_params")
        }
        for name, settings in STRATEGIES.items()
    }
