"""The pages in docs/ are current, and their links point to existing files."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from docs.draw_pipeline_schedules import timetable
from docs.draw_sharding import PICTURE, picture
from docs.tabulate_billions import PAGE, page
from engine.pipeline.schedule import SCHEDULES

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), ROOT / "tests" / "README.md"]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_drawing_of_the_sharding_is_current():
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run: python docs/draw_sharding.py"


def test_table_of_billions_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python docs/tabulate_billions.py"


@pytest.mark.parametrize("name", SCHEDULES)
def test_docstring_of_a_schedule_has_the_timetable_of_its_code(name):
    docstring = inspect.getdoc(SCHEDULES[name])
    assert docstring is not None
    assert timetable(name) in docstring, "run: python docs/draw_pipeline_schedules.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_existing_files(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
