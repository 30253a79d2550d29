"""The images in the files and folders of data.path, by split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.config.splits import TRAIN
from engine.data.images.image_formats import FORMATS, ImageFile, Pixels, Shape, open_file, size_of
from engine.data.images.not_images import NotImagesError
from engine.data.input_files.data_file import data_files
from engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Images of one shape. Grey ones among images in colour get three equal channels."""

    name: str
    files: Sequence[ImageFile]
    shape: Shape

    @property
    def count(self) -> int:
        return sum(file.count for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 of the content, hexadecimal."""
        parts = [(file.digest, file.count, file.shape) for file in self.files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def with_channels(self, channels: int) -> ImageFiles:
        """Return the images with this number of channels. Raises UserError for images in colour
        if the number is 1."""
        if channels < self.shape[2]:
            raise UserError(
                f"{self.name} has images in colour, and the codebook has grey levels; convert them "
                "to grey levels"
            )
        return replace(self, shape=(*self.shape[:2], channels))

    def blocks(self) -> Iterator[Pixels]:
        """Yield all images in blocks."""
        for file in self.files:
            for block in file.read():
                yield np.broadcast_to(block, (len(block), *self.shape))

    def first(self, number: int) -> Pixels:
        """Return the first ``number`` images; fewer if there are fewer."""
        found: list[Pixels] = []
        for block in self.blocks():
            found.append(block[: number - sum(map(len, found))])
            if sum(map(len, found)) == number:
                break
        return np.concatenate(found)


def open_images(
    path: str | Sequence[str], key: str, *, records: Path | None = None
) -> dict[str, ImageFiles]:
    """Open the image files of data.path and return them by split. All images have one size.

    Files below a folder that are no images are skipped. CIFAR-10's test batch, and arrays of an
    .npz whose names contain "test" or "val", are splits of those names.

    Args:
        key: name of the array to read from an .npz that has several arrays of images.
        records: a folder that caches digests.

    Raises:
        UserError: a file cannot be read, or there are no images, or images of several sizes.
    """
    named = f"data.path={path if isinstance(path, str) else list(path)!r}"
    given = {path} if isinstance(path, str) else set(path)
    found: list[ImageFile] = []
    names: set[str] = set()
    for file in data_files(path, records=records):
        try:
            found += open_file(file, key)
            names.add(file.path.name)
        except NotImagesError as error:
            if str(file.path) in given:
                raise UserError(f"{file.name} {error}; convert it, or leave it out") from None
    if not found:
        raise UserError(f"{named}: no images are there; cuboid reads {FORMATS}")
    if any(f"{name}.bin" in names for name in names):
        raise UserError(
            f"{named} has both versions of CIFAR-10, so every image twice; set data.path to the "
            "folder of one version"
        )
    height, width, _ = found[0].shape
    for other in found:
        if other.shape[:2] != (height, width):
            raise UserError(
                f"{other.name}: its images have {size_of(other.shape)} pixels, those of "
                f"{found[0].name} {size_of(found[0].shape)}; resize them to one size"
            )
    shape = height, width, max(file.shape[2] for file in found)
    splits = {file.split: [f for f in found if f.split == file.split] for file in found}
    if TRAIN not in splits:  # the path names a test batch itself
        splits = {TRAIN: found}
    return {
        split: ImageFiles(name=named, files=files, shape=shape) for split, files in splits.items()
    }
