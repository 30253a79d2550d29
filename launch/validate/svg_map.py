"""The map of a layout as SVG: one card per block of GPUs, ordered by copy and stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree.ElementTree import Element

from engine.formatting import plural
from engine.layout import Layout
from launch.validate.map_blocks import GpuBlock, blocks, title
from launch.validate.svg import (
    GREY,
    INK,
    LINE,
    PAPER,
    arrow,
    canvas,
    group,
    label,
    mix,
    ramp,
    rect,
    render,
    text_width,
)
from launch.validate.svg_grids import Body, body

WIDEST = 1640.0  # maximum width of a row of cards
MARGIN, PADDING, HEAD, BELOW = 32.0, 14.0, 58.0, 16.0
ARROW, APART = 36.0, 18.0  # distance of cards with an arrow between them, and without
TITLE = 22.0


@dataclass(frozen=True)
class Caption:
    """The text on the card of a stage."""

    layers: str
    memory: str


@dataclass(frozen=True)
class Card:
    block: GpuBlock
    body: Body
    title: str
    caption: Caption

    @property
    def width(self) -> float:
        head = text_width(self.title, 15) + PADDING + text_width(self.caption.memory, 11)
        return max(self.body.width, head, text_width(self.caption.layers, 11)) + 2 * PADDING

    @property
    def height(self) -> float:
        return HEAD + self.body.height + BELOW


def svg_map(layout: Layout, name: str, captions: Sequence[Caption]) -> str:
    """Draw the map of ``layout``; return the text of an SVG file.

    name: name of the config.
    captions: one per stage.

    Raises:
        UserError: there are too many GPUs.
    """
    cards = [_card(block, layout, captions[block.stage]) for block in blocks(layout)]
    card_rows = [CardRow(heading, those) for heading, those in _copies(cards, layout)]
    notes = _notes(layout)
    headline = _headline(layout)
    texts = [(name, TITLE), (headline, 14), *((note, 12) for note in notes)]
    inner = max(*(card_row.width for card_row in card_rows), *(text_width(*text) for text in texts))
    top = MARGIN + 62
    bottom = top + sum(card_row.height + APART for card_row in card_rows) + 4
    height = bottom + 19 * len(notes) + MARGIN - 12
    root = canvas(inner + 2 * MARGIN, height, f"{name}: which GPU holds what", headline)
    label(root, MARGIN, MARGIN + 8, name, size=TITLE, bold=True)
    label(root, MARGIN, MARGIN + 36, headline, size=14, fill=GREY)
    for card_row in card_rows:
        card_row.draw(root, MARGIN, top, layout)
        top += card_row.height + APART
    for number, note in enumerate(notes):
        label(root, MARGIN, bottom + 19 * number, note, size=12, fill=GREY)
    return render(root)


class CardRow:
    """The cards of one copy of the model, or of all copies, in rows of equal length."""

    def __init__(self, heading: str, cards: Sequence[Card]) -> None:
        self._heading, self._cards = heading, cards
        self._top = 26.0 if heading else 0.0
        self._linked = len(cards) > 1 and cards[0].block.stage != cards[1].block.stage
        self._gap = ARROW if self._linked else APART
        self._wide = max(card.width for card in cards)
        self._high = max(card.height for card in cards)
        self._across = _even(len(cards), int((WIDEST + self._gap) // (self._wide + self._gap)))
        self._rows = -(-len(cards) // self._across)
        self._indent = ARROW if self._linked and self._rows > 1 else 0.0
        self.width = self._across * (self._wide + self._gap) - self._gap + 2 * self._indent
        self.height = self._top + self._rows * (self._high + APART) - APART

    def draw(self, root: Element, x: float, y: float, layout: Layout) -> None:
        if self._heading:
            label(root, x, y + 9, self._heading, size=14, fill=INK, bold=True)
        for number, card in enumerate(self._cards):
            row, column = divmod(number, self._across)
            left = x + self._indent + column * (self._wide + self._gap)
            above = y + self._top + row * (self._high + APART)
            middle = above + self._high / 2
            if self._linked and number:
                arrow(root, (left - ARROW + 6, middle), (left - 5, middle))
            if self._linked and column == self._across - 1 and number < len(self._cards) - 1:
                end = left + self._wide
                arrow(root, (end + 5, middle), (end + ARROW - 6, middle))
            self._draw_card(root, card, left, above, layout)

    def _draw_card(self, root: Element, card: Card, x: float, y: float, layout: Layout) -> None:
        colour = ramp(card.block.stage, layout.pipeline)
        box = group(root)
        rect(
            box,
            x,
            y,
            self._wide,
            self._high,
            radius=12,
            fill=mix(PAPER, colour, 0.06),
            stroke=mix(LINE, colour, 0.3),
        )
        label(box, x + PADDING, y + 20, card.title, size=15, fill=colour, bold=True)
        label(box, x + PADDING, y + 39, card.caption.layers, size=11, fill=GREY)
        right = x + self._wide - PADDING
        label(box, right, y + 20, card.caption.memory, size=11, anchor="end", fill=GREY)
        inside = x + (self._wide - card.body.width) / 2
        card.body.draw(box, inside, y + HEAD, layout, colour)


def _card(block: GpuBlock, layout: Layout, caption: Caption) -> Card:
    return Card(
        block=block,
        body=body(block, layout.gpus),
        title=title(block, layout),
        caption=caption,
    )


def _copies(cards: Sequence[Card], layout: Layout) -> list[tuple[str, Sequence[Card]]]:
    """Group the cards by copy of the model, each with a heading; a single group without stages."""
    if layout.pipeline == 1 or layout.data == 1 or "data" not in cards[0].block.index:
        return [("", cards)]
    copies = groupby(cards, key=lambda card: card.block.index["data"])
    return [(f"data {data}", list(those)) for data, those in copies]


def _even(count: int, most: int) -> int:
    """Return the number of cards per row, at most ``most``: rows of equal length, unless that needs
    more than twice as many rows."""
    most = max(1, min(most, count))
    divisor = next(n for n in range(most, 0, -1) if count % n == 0)
    return divisor if 2 * divisor > most else -(-count // -(-count // most))


def _headline(layout: Layout) -> str:
    axes = " × ".join(f"{axis} {size}" for axis, size in layout.tensor_axes.items())
    sizes = f": {axes}" if len(layout.tensor_axes) > 1 else ""
    parts = [
        plural(layout.gpus, "GPU") + f" = {layout.data} data",
        plural(layout.pipeline, "stage"),
        f"{layout.tensor} tensor" + (f" ({layout.mode.name}{sizes})" if layout.tensor > 1 else ""),
    ]
    return " × ".join(parts)


def _notes(layout: Layout) -> list[str]:
    notes = []
    if layout.tensor > 1:
        notes.append("The GPUs of a card share every tensor of its layers.")
    if layout.pipeline > 1:
        notes.append("Arrows: activations go from stage to stage, gradients come back.")
    if layout.data > 1:
        notes.append("data: copies of the model, each on samples of its own; gradients are summed.")
    return notes
