"""Images for tests, drawn by formulas, and CIFAR-10's two formats, written from its description."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def drawn(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Pixels:
    """Draw images [count, height, width, 3]: a disk on a gradient, of random colours."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    colours = random.integers(0, 256, (count, 2, 3))
    centres = random.uniform(0.25, 0.75, (count, 2)) * (height, width)
    images = np.empty((count, height, width, 3), np.uint8)
    for image, (back, front), (cy, cx) in zip(images, colours, centres, strict=True):
        image[:] = back * (0.5 + 0.5 * y[..., None] / height)
        image[(y - cy) ** 2 + (x - cx) ** 2 < (height / 4) ** 2] = front
    return images


def planes_of(images: Pixels) -> Pixels:
    """Return CIFAR-10's planes [n, 3072] of images [n, 32, 32, 3]: red, green and blue, each row by
    row."""
    return np.stack(
        [np.concatenate([image[..., channel].ravel() for channel in range(3)]) for image in images]
    )


def write_cifar(path: Path, images: Pixels) -> None:
    """Write a file of CIFAR-10's binary version, with labels 0 to 9 in turn."""
    with path.open("wb") as file:
        for number, planes in enumerate(planes_of(images)):
            file.write(bytes([number % 10]) + planes.tobytes())


def write_cifar_pickle(path: Path, images: Pixels, protocol: int = 2) -> None:
    """Write a file of CIFAR-10's Python version."""
    content = {"data": planes_of(images), "labels": [n % 10 for n in range(len(images))]}
    path.write_bytes(pickle.dumps(content, protocol))
