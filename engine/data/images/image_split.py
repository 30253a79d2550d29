"""Samples of images: one image each, which shares no token with another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import UserError
from models.parallel.targets import IGNORED


class ImageSplit:
    """Sample i is image i: with P pixels, ids 0 to P - 2 are inputs and 1 to P - 1 targets.

    At SEQ_LEN = P the last id is an input, too, whose target is IGNORED.
    """

    def __init__(self, images: NDArray[Any], seq_len: int) -> None:
        """``images``: ids [n, pixels]."""
        self.images = images
        self.seq_len = seq_len

    @property
    def samples(self) -> int:
        return len(self.images)

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (ids, targets) [n, seq_len]."""
        images = self.images[indices].astype(np.int64)
        targets = np.full((len(indices), self.seq_len), IGNORED)
        targets[:, : images.shape[1] - 1] = images[:, 1:]
        return images[:, : self.seq_len], targets

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        return len(indices) * (int(self.images.shape[1]) - 1)


def require_seq_len(seq_len: int, height: int, width: int) -> None:
    """Raise UserError unless SEQ_LEN fits images of this size."""
    pixels = height * width
    if seq_len not in (pixels - 1, pixels):
        raise UserError(
            f"SEQ_LEN={seq_len} does not fit images of {height} x {width} pixels; set "
            f"SEQ_LEN={pixels - 1}, in which every position has a target, or SEQ_LEN={pixels}, in "
            "which the last has none"
        )
