"""Codebook of images: the colour or grey level that each token id of a pixel stands for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.data.batches.sampler import permutation, raw_bits
from engine.data.images.image_formats import Pixels, size_of
from engine.data.tokenizer import IMAGES
from engine.errors import UserError

SAMPLED = 5
"""Pixels per image that the codebook is fitted to."""
ROUNDS = 30
"""Maximum number of iterations of k-means."""
ORDER, PIXELS = 200, 201  # random streams, one per use


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """Encodes images of ``height`` x ``width`` pixels as ids 0 to size - 1, and decodes them."""

    colours: NDArray[np.float32]
    """[size, channels], 0 to 255: grey levels have one channel."""
    height: int
    width: int
    pixel_order: int | None = None
    """Seed of the order of pixels; None: row by row."""
    first: NDArray[np.int64] | None = None
    """How often each id is the first of an image [size]; None: unknown."""

    @classmethod
    def load(cls, state: dict[str, Any]) -> Self:
        """Make a codebook from the result of ``state``. Raises UserError if it is corrupt."""
        try:
            colours = np.array(state["codebook"], np.float32)
            height, width = int(state["height"]), int(state["width"])
            order, first = state["pixel_order"], state["first"]
            if colours.ndim != 2 or colours.shape[1] not in (1, 3) or min(height, width) < 1:
                raise ValueError
            counts = None if first is None else np.array(first, np.int64).reshape(len(colours))
        except (KeyError, TypeError, ValueError):
            raise UserError(
                "the saved codebook is corrupt; restore the file, or set data.codebook to another "
                "one"
            ) from None
        return cls(colours=colours, height=height, width=width, pixel_order=order, first=counts)

    def state(self) -> dict[str, Any]:
        """Return a JSON object from which ``load`` makes the codebook again. It is stored in place
        of a saved tokenizer; its key ``type`` tells a codebook from a tokenizer."""
        return {
            "type": IMAGES,
            "height": self.height,
            "width": self.width,
            "pixel_order": self.pixel_order,
            "first": None if self.first is None else self.first.tolist(),
            "codebook": self.colours.tolist(),
        }

    @property
    def size(self) -> int:
        return len(self.colours)

    @property
    def channels(self) -> int:
        return int(self.colours.shape[1])

    @property
    def pixels(self) -> int:
        """Pixels, and so ids, of an image."""
        return self.height * self.width

    def __str__(self) -> str:
        what = "colours" if self.channels == 3 else "grey levels"
        return f"{self.size:,} {what}, {self.height} x {self.width} pixels"

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The index of the pixel at each position of an image's ids [pixels]; pixels are numbered
        row by row."""
        if self.pixel_order is None:
            return np.arange(self.pixels)
        return permutation(self.pixels, self.pixel_order, ORDER)

    def encode(self, images: Pixels) -> NDArray[np.uint16]:
        """Encode images [n, height, width, channels] to ids [n, pixels]: each pixel to the id of
        the nearest colour, the lowest id if several are equally near."""
        assert images.shape[1:3] == (self.height, self.width)
        ids = self._nearest(images).reshape(len(images), self.pixels)
        found: NDArray[np.uint16] = ids[:, self.order]
        return found

    def decode(self, ids: NDArray[Any]) -> Pixels:
        """Decode ids [n, pixels] to images [n, height, width, channels]."""
        pixels = np.empty((len(ids), self.pixels, self.channels), np.uint8)
        pixels[:, self.order] = self._bytes[ids]
        return pixels.reshape(len(ids), self.height, self.width, self.channels)

    def encodes_like(self, other: Codebook) -> bool:
        """Return whether this codebook and ``other`` encode every image to the same ids."""
        mine, its = ((c.height, c.width, c.pixel_order) for c in (self, other))
        return mine == its and np.array_equal(self.colours, other.colours)

    def require_like(self, other: Codebook) -> None:
        """Raise UserError unless ``other``, the codebook of some images, equals this one."""
        if not self.encodes_like(other):
            raise UserError(
                f"the images have another codebook ({other}) than the model ({self}); set "
                "data.codebook to the model's run or export, and data.pixel_order as it is there"
            )

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return self.colours.round().clip(0, 255).astype(np.uint8)

    @cached_property
    def _table(self) -> NDArray[np.int32]:
        """The id of each possible colour [256^channels]; -1 until an image with the colour is
        encoded."""
        return np.full(256**self.channels, -1, np.int32)

    def _nearest(self, images: Pixels) -> NDArray[np.uint16]:
        """Return the id of the colour nearest to each pixel [n, height, width]."""
        packed = pack(images)
        new = np.unique(packed[self._table[packed] < 0])
        colours = self.colours.astype(np.float64)
        for part in np.array_split(new, -(-len(new) // 8192) or 1):
            # |x - c|^2 without |x|^2, which no choice of c changes
            distances = (colours**2).sum(1) - 2 * unpack(part, self.channels) @ colours.T
            self._table[part] = distances.argmin(1)
        return self._table[packed].astype(np.uint16)


def pack(pixels: Pixels) -> NDArray[np.int64]:
    """Return each pixel [..., channels] as one number [...]."""
    packed = np.zeros(pixels.shape[:-1], np.int64)
    for channel in range(pixels.shape[-1]):
        packed = packed * 256 + pixels[..., channel]
    return packed


def unpack(packed: NDArray[np.int64], channels: int) -> NDArray[np.float64]:
    """Return the pixels [n, channels] that ``pack`` turned into the numbers ``packed`` [n]."""
    shifts = 8 * np.arange(channels)[::-1]
    return ((packed[:, None] >> shifts) & 255).astype(np.float64)


def grey_levels(size: int) -> NDArray[np.float32]:
    """Return ``size`` grey levels [size, 1], evenly spaced from 0 to 255."""
    return np.linspace(0, 255, size, dtype=np.float32)[:, None]


def sample_pixels(blocks: Iterator[Pixels]) -> NDArray[np.int64]:
    """Return SAMPLED random pixels of each image, packed [SAMPLED x images]."""
    found: list[NDArray[np.int64]] = []
    for number, block in enumerate(blocks):
        pixels = pack(block).reshape(len(block), -1)
        draws = raw_bits(len(block) * SAMPLED, 0, PIXELS, number).reshape(len(block), SAMPLED)
        places = (draws % np.uint64(pixels.shape[1])).astype(np.int64)
        found.append(np.take_along_axis(pixels, places, axis=1).ravel())
    return np.concatenate(found)


def fit_colours(pixels: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    """Return ``size`` colours [size, 3] that are near to packed pixels [n], by k-means (Lloyd 1982)
    from random pixels. scikit-learn moves a colour to which no pixel is nearest onto the pixel that
    is farthest from its colour.

    If the pixels have at most ``size`` distinct colours, all of these are returned.

    Raises UserError if scikit-learn is missing.
    """
    distinct = np.unique(pixels)
    if len(distinct) <= size:
        return np.resize(unpack(distinct, 3), (size, 3)).astype(np.float32)
    cluster = require_sklearn("sklearn.cluster")
    points = unpack(pixels, 3).astype(np.float32)
    with warnings.catch_warnings():  # of too few iterations, which do for colours
        warnings.simplefilter("ignore")
        kmeans = cluster.KMeans(size, init="random", n_init=1, max_iter=ROUNDS, random_state=0)
        kmeans.fit(points)
    colours: NDArray[np.float32] = kmeans.cluster_centers_.astype(np.float32)
    return colours


def require_sklearn(module: str) -> Any:
    """Import a module of scikit-learn. Raises UserError if it is missing."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            "scikit-learn is missing, which fits codebooks and has the built-in digits; "
            "pip install scikit-learn"
        ) from None


def require_size(codebook: Codebook, shape: tuple[int, int, int], name: str) -> None:
    """Raise UserError unless the codebook is for images of the height and width in ``shape``.
    ``name``: the data whose images have that shape, for the message."""
    if (codebook.height, codebook.width) != shape[:2]:
        raise UserError(
            f"{name} has images of {size_of(shape)} pixels, the model is of "
            f"{codebook.height} x {codebook.width}; resize the images"
        )
