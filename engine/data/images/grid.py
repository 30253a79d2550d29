"""Grids of images in a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.data.images.codebook import Codebook
from engine.data.images.image_formats import Pixels
from engine.files.atomic_write import atomic_path

SIDE = 64
"""Smallest side of an image in a grid: smaller ones are enlarged."""
GAP = 4
"""Pixels between the images of a row, and twice that between the cells of a grid."""
BACKGROUND = 255


def draw_rows(rows: Sequence[Pixels]) -> NDArray[np.uint8]:
    """Draw a grid [H, W, 3]. Each row is images [n, height, width, channels], drawn side by
    side."""
    return _stack([_stack(list(map(_enlarged, row)), axis=1, gap=GAP) for row in rows], 0, GAP)


def draw_grid(cells: Sequence[Sequence[Pixels]], columns: int) -> NDArray[np.uint8]:
    """Draw a grid [H, W, 3] of cells, ``columns`` cells per row. Each cell is some images
    [height, width, channels], drawn side by side."""
    drawn = [_stack(list(map(_enlarged, cell)), axis=1, gap=GAP) for cell in cells]
    empty = np.full_like(drawn[0], BACKGROUND)
    drawn += [empty] * (-len(drawn) % columns)
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    return _stack([_stack(row, axis=1, gap=3 * GAP) for row in rows], 0, 3 * GAP)


def _enlarged(image: Pixels) -> NDArray[np.uint8]:
    """Convert an image [height, width, channels] to colour, and enlarge each pixel to a square so
    that the image is at least SIDE pixels high and wide."""
    times = max(1, -(-SIDE // min(image.shape[:2])))
    coloured = np.broadcast_to(image, (*image.shape[:2], 3))
    return coloured.repeat(times, axis=0).repeat(times, axis=1)


def _stack(parts: list[NDArray[np.uint8]], axis: int, gap: int) -> NDArray[np.uint8]:
    shape = list(parts[0].shape)
    shape[axis] = gap
    between = np.full(shape, BACKGROUND, np.uint8)
    spaced = [piece for part in parts for piece in (between, part)][1:]
    return np.concatenate(spaced, axis=axis)


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write pixels [H, W, 3] as a PNG file. Raises RunError if it cannot be written."""
    from PIL import Image

    with atomic_path(path, required_bytes=pixels.nbytes, replace=True) as new:
        Image.fromarray(pixels).save(new, "PNG")


def write_codebook_error(path: Path, images: Pixels, codebook: Codebook) -> None:
    """Write a PNG file of three rows: images [n, height, width, channels], the same images encoded
    and decoded again, and the absolute difference of these two rows."""
    encoded = codebook.decode(codebook.encode(images))
    difference = np.abs(images.astype(np.int16) - encoded).astype(np.uint8)
    write_png(path, draw_rows([images, encoded, difference]))
