"""Variants of images, to train on more images than there are: an affine map of each, at random."""

from __future__ import annotations

from math import cos, sin

import numpy as np

from engine.data.images.codebook import require_sklearn
from engine.data.images.image_formats import Pixels

TURN, SHEAR, SCALE, MOVE = 0.06, 0.06, 0.036, 0.026
"""Standard deviations of the angle in radians, of the shear, of the factors of height and width,
and of the distance as a share of height and width."""


def vary(images: Pixels, rng: np.random.Generator) -> Pixels:
    """Return each image [n, height, width, channels] rotated, sheared, scaled and moved a little,
    interpolated linearly; pixels from outside the image are 0. Raises UserError without SciPy."""
    ndimage = require_sklearn("scipy.ndimage")  # SciPy is a part of scikit-learn's installation
    varied = np.empty_like(images)
    size = np.array(images.shape[1:3])
    middle = (size - 1) / 2
    for image, result in zip(images, varied, strict=True):
        angle, shear = rng.normal(0, (TURN, SHEAR))
        height, width = 1 + rng.normal(0, SCALE, 2)
        turned = np.array(
            [[cos(angle) * height, shear - sin(angle)], [sin(angle), cos(angle) * width]]
        )
        offset = middle - turned @ middle + rng.normal(0, MOVE, 2) * size
        for channel in range(images.shape[3]):
            pixels = image[..., channel].astype(np.float32)
            found = ndimage.affine_transform(pixels, turned, offset=offset, order=1)
            result[..., channel] = found.round()
    return varied
