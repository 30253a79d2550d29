"""The pages in docs/ are current, and what they link to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.draw_sharding import PICTURE, picture

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_the_drawn_sharding_is_that_of_the_modes():
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run: python docs/draw_sharding.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
