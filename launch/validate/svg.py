"""SVG primitives: shapes, text and colours."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

NAMESPACE = "http://www.w3.org/2000/svg"
FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
INK, GREY, LINE, PAPER = "#1f2937", "#6b7280", "#cbd5e1", "#ffffff"
# Colours from the first stage to the last; white text is readable on each of them.
RAMP = ("#2563c9", "#6d4fc4", "#b0409c", "#cc4a5a", "#c2620e")

Point = tuple[float, float]


def canvas(width: float, height: float, title: str, description: str) -> Element:
    """Create a picture with a blank background."""
    root = Element(
        "svg",
        {
            "xmlns": NAMESPACE,
            "viewBox": f"0 0 {_number(width)} {_number(height)}",
            "width": _number(width),
            "height": _number(height),
            "role": "img",
            "font-family": FONT,
        },
    )
    SubElement(root, "title").text = title
    SubElement(root, "desc").text = description
    rect(root, 0, 0, width, height, fill=PAPER)
    return root


def render(root: Element) -> str:
    """Return the picture as the text of an SVG file."""
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def group(parent: Element, **attributes: str) -> Element:
    return SubElement(parent, "g", _names(attributes))


def rect(
    parent: Element,
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    radius: float = 0,
    **style: str,
) -> Element:
    geometry = {"x": x, "y": y, "width": width, "height": height, "rx": radius}
    return SubElement(parent, "rect", _numbers(geometry) | _names(style))


def polygon(parent: Element, points: Sequence[Point], **style: str) -> Element:
    text = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
    return SubElement(parent, "polygon", {"points": text} | _names(style))


def line(parent: Element, start: Point, end: Point, **style: str) -> Element:
    geometry = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    return SubElement(parent, "line", _numbers(geometry) | {"stroke": LINE} | _names(style))


def arrow(parent: Element, start: Point, end: Point) -> None:
    """Draw a horizontal arrow to the right."""
    (x, y), tip = end, 7
    line(parent, start, (x - tip, y), stroke=GREY, stroke_width="1.6")
    polygon(parent, [(x, y), (x - tip - 2, y - 5), (x - tip - 2, y + 5)], fill=GREY)


def label(
    parent: Element,
    x: float,
    y: float,
    content: str,
    *,
    size: float,
    anchor: str = "start",
    fill: str = INK,
    bold: bool = False,
) -> Element:
    """Draw text that is vertically centred at ``y``."""
    attributes = _numbers({"x": x, "y": y + 0.35 * size, "font-size": size})
    attributes |= {"text-anchor": anchor, "fill": fill}
    if bold:
        attributes["font-weight"] = "600"
    element = SubElement(parent, "text", attributes)
    element.text = content
    return element


def text_width(content: str, size: float) -> float:
    """Return an upper bound of the width of ``content`` in any common sans-serif font."""
    return 0.62 * size * len(content)


def ramp(index: int, count: int) -> str:
    """Return colour ``index`` of a ramp of ``count`` colours."""
    if count == 1:
        return RAMP[0]
    position = index / (count - 1) * (len(RAMP) - 1)
    before = min(int(position), len(RAMP) - 2)
    return mix(RAMP[before], RAMP[before + 1], position - before)


def mix(colour: str, other: str, share: float) -> str:
    """Mix two colours: (1 - share) of ``colour`` and ``share`` of ``other``."""
    pairs = zip(_channels(colour), _channels(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _channels(colour: str) -> list[int]:
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


def _names(attributes: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in attributes.items()}


def _numbers(attributes: dict[str, float]) -> dict[str, str]:
    return {name: _number(value) for name, value in attributes.items() if value or name != "rx"}


def _number(value: float) -> str:
    return f"{round(value, 2):g}"
