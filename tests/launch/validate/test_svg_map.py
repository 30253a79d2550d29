"""The SVG map: read as XML, positions compared with the layout's coordinates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations, pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from engine.layout import Layout
from launch.validate.svg import NAMESPACE, ramp
from launch.validate.svg_map import Caption, svg_map
from tests.launch.validate.support import LAYOUTS

every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def picture(layout: Layout, name: str = "gpt") -> Element:
    captions = [Caption(f"layers {n}", f"{n} GiB a GPU") for n in range(layout.pipeline)]
    return ElementTree.fromstring(svg_map(layout, name, captions))


def inside(element: Element, tag: str) -> list[Element]:
    return element.findall(f".//{{{NAMESPACE}}}{tag}")


@dataclass(frozen=True)
class Rectangle:
    """A bounding box and its centre."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        return (self.top + self.bottom) / 2

    def holds(self, other: Rectangle) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.right <= self.right
            and other.bottom <= self.bottom
        )

    def overlaps(self, other: Rectangle) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def rectangle(element: Element) -> Rectangle:
    left, top = float(element.get("x", 0)), float(element.get("y", 0))
    return Rectangle(
        left, top, left + float(element.get("width", 0)), top + float(element.get("height", 0))
    )


def face(gpu: Element) -> Rectangle:
    """Return the bounding box of the numbered shape: a tile, or the top of a slab (drawn last)."""
    if rects := inside(gpu, "rect"):
        return rectangle(rects[0])
    numbers = [float(n) for n in re.split("[ ,]", inside(gpu, "polygon")[-1].get("points", ""))]
    return Rectangle(min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))


def gpus(root: Element) -> dict[int, Element]:
    found = [group for group in inside(root, "g") if "id" in group.attrib]
    numbers = [int(group.attrib["id"].removeprefix("gpu-")) for group in found]
    assert len(set(numbers)) == len(numbers)
    return dict(zip(numbers, found, strict=True))


@every_layout
def test_every_gpu_is_drawn_once_with_its_number_and_coordinates(layout):
    found = gpus(picture(layout))
    assert sorted(found) == list(range(layout.gpus))
    for rank, gpu in found.items():
        where = layout.coordinates(rank)
        assert {
            key.removeprefix("data-"): int(value)
            for key, value in gpu.attrib.items()
            if key.startswith("data-")
        } == where
        (number,) = inside(gpu, "text")
        assert number.text == str(rank)
        (title,) = inside(gpu, "title")
        assert title.text == f"GPU {rank}: " + ", ".join(f"{a} {n}" for a, n in where.items())


@every_layout
def test_numbers_are_centred_in_their_tiles_and_not_covered(layout):
    found = gpus(picture(layout))
    faces = {rank: face(gpu) for rank, gpu in found.items()}
    middles = {}
    for rank, gpu in found.items():
        (number,) = inside(gpu, "text")
        x, y = float(number.get("x", 0)), float(number.get("y", 0))
        assert abs(x - faces[rank].x) < 1
        assert faces[rank].top < y < faces[rank].bottom
        middles[rank] = x, y
    for one, other in combinations(middles, 2):
        (x, y), (u, v) = middles[one], middles[other]
        assert abs(x - u) > 20 or abs(y - v) > 14, f"{one} and {other} are read as one"


@every_layout
def test_cards_contain_their_gpus_and_do_not_overlap(layout):
    root = picture(layout)
    width, height = (float(n) for n in root.attrib["viewBox"].split()[2:])
    cards = [group for group in root if group.tag.endswith("}g")]
    places = [rectangle(inside(card, "rect")[0]) for card in cards]
    assert all(Rectangle(0, 0, width, height).holds(place) for place in places)
    assert not any(one.overlaps(other) for one, other in combinations(places, 2))
    for card, place in zip(cards, places, strict=True):
        held = gpus(card)
        assert len({layout.coordinates(rank)["pipeline"] for rank in held}) == 1
        assert all(place.holds(face(gpu)) for gpu in held.values())
        stage = layout.coordinates(next(iter(held)))["pipeline"]
        texts = [text.text for text in inside(card, "text")]
        assert f"layers {stage}" in texts
        assert f"{stage} GiB a GPU" in texts


@pytest.mark.parametrize(
    ("name", "across", "down"),
    [
        ("1d", "t{t}", ""),
        ("GPT-3", "t{t}", ""),
        ("2d", "c{c}", "r{r}"),
        ("2.5d, flat", "c{c}", "r{r}"),
        ("2.5d, line", "d{d}", ""),
        ("data", "data {data}", ""),
    ],
)
def test_tiles_of_a_plane_are_aligned_with_their_names(name, across, down):
    layout = LAYOUTS[name]
    for card in (group for group in picture(layout) if group.tag.endswith("}g")):
        texts = inside(card, "text")
        columns = {(text.text, text.get("x")) for text in texts}
        rows = {(text.text, text.get("y")) for text in texts}
        for rank, gpu in gpus(card).items():
            place, where = face(gpu), layout.coordinates(rank)
            assert (across.format(**where), f"{round(place.x, 2):g}") in columns
            if down:
                baseline = f"{round(place.y + 0.35 * 11, 2):g}"
                assert (down.format(**where), baseline) in rows


def test_planes_of_a_cube_are_joined():
    """Axis a runs down to the left, b down to the right, c straight down."""
    layout = LAYOUTS["3d"]
    faces = {rank: face(gpu) for rank, gpu in gpus(picture(layout)).items()}

    def way(axis: str) -> set[tuple[float, float]]:
        pairs = [pair for group in layout.groups(axis) for pair in pairwise(group)]
        return {(round(faces[b].x - faces[a].x), round(faces[b].y - faces[a].y)) for a, b in pairs}

    ((left, down),) = way("a")
    assert left < 0 < down
    assert way("b") == {(-left, down)}
    ((aside, below),) = way("c")
    assert aside == 0
    assert below > 2 * down


def test_stages_of_a_copy_are_joined_by_arrows_in_order():
    layout = LAYOUTS["1d"]
    root = picture(layout)
    cards = [group for group in root if group.tag.endswith("}g")]
    places = [rectangle(inside(card, "rect")[0]) for card in cards]
    arrows = [line for line in root if line.tag.endswith("}line")]
    assert len(arrows) == 2
    for arrow, (before, after) in zip(arrows, (places[:2], places[2:]), strict=True):
        start, end = float(arrow.get("x1", 0)), float(arrow.get("x2", 0))
        assert before.right < start < end < after.left
        assert before.top < float(arrow.get("y1", 0)) < before.bottom


def test_copies_are_not_joined():
    for name in ("2.5d", "many copies", "3d"):
        assert not [line for line in picture(LAYOUTS[name]) if line.tag.endswith("}line")]


def test_colour_depends_on_the_stage_only():
    layout = LAYOUTS["1d"]
    fills = {
        rank: inside(gpu, "rect")[0].get("fill") for rank, gpu in gpus(picture(layout)).items()
    }
    assert fills[0] == fills[1] == fills[4] == fills[5] == ramp(0, 2)
    assert fills[2] == fills[3] == fills[6] == fills[7] == ramp(1, 2)
    assert ramp(0, 2) != ramp(1, 2)


@pytest.mark.parametrize("stage", range(32))
def test_white_numbers_have_contrast_on_every_stage(stage):
    """A contrast of at least 4 to 1 (WCAG 2.2 demands 3 for large bold text)."""

    def linear(channel: int) -> float:
        share = channel / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    colour = ramp(stage, 32)
    red, green, blue = (linear(int(colour[n : n + 2], 16)) for n in (1, 3, 5))
    assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) > 4


def test_name_may_contain_any_character():
    root = picture(LAYOUTS["serial"], "<b>&\"'")
    assert inside(root, "text")[0].text == "<b>&\"'"
    assert "<b>" in (inside(root, "title")[0].text or "")


def test_map_has_a_text_description():
    words = [text.text for text in inside(picture(LAYOUTS["3d, all"]), "text")]
    assert words[1] == "108 GPUs = 2 data × 2 stages × 27 tensor (3d: c 3 × a 3 × b 3)"
