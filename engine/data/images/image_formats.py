"""Formats of image files as streams of pixels: CIFAR-10, NumPy arrays, PNG and JPEG."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.config.splits import TRAIN
from engine.data.images import cifar
from engine.data.images.not_images import NotImagesError
from engine.data.input_files.data_file import BLOCK, DataFile
from engine.errors import UserError

Pixels = NDArray[np.uint8]
"""[images, height, width, channels], with one channel (grey) or three (red, green, blue)."""
Shape = tuple[int, int, int]
"""Height, width and channels of an image."""

TEST = "test"
SPLITS = (TRAIN, TEST, "val")
"""Names of splits that the names of arrays in an .npz contain."""
FORMATS = "CIFAR-10's .bin files or pickles, .npy, .npz, PNG or JPEG"


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """The images of one file, or of one array in it."""

    name: str
    digest: str
    count: int
    shape: Shape
    read: Callable[[], Iterator[Pixels]]
    """Yields the images in blocks."""
    split: str = TRAIN


def size_of(shape: Shape) -> str:
    """Format height x width."""
    return f"{shape[0]} x {shape[1]}"


def open_file(file: DataFile, key: str) -> list[ImageFile]:
    """Return the images of a file, which its first bytes identify.

    Raises NotImagesError for another kind of file, UserError for images that cannot be used.
    """
    head = file.head
    if head.startswith(b"\x93NUMPY"):
        return [_npy(file.name, file.digest, head, file.blocks)]
    if head.startswith(b"PK\x03\x04"):
        return _npz(file, key)
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        return [_picture(file)]
    if cifar.is_pickle(head):
        content = cifar.unpickle(file)
        return [_in_memory(file, cifar.images_of_planes(content))]
    count = cifar.count_records(file)
    return [
        ImageFile(
            name=file.name,
            digest=file.digest,
            count=count,
            shape=cifar.SHAPE,
            read=lambda: map(cifar.images_of_records, _rows(file.blocks(), cifar.RECORD_BYTES)),
            split=_split_of_cifar(file),
        )
    ]


def _split_of_cifar(file: DataFile) -> str:
    return TEST if file.path.name.startswith("test_batch") else TRAIN


def _in_memory(file: DataFile, images: Pixels) -> ImageFile:
    return ImageFile(
        name=file.name,
        digest=file.digest,
        count=len(images),
        shape=cifar.SHAPE,
        read=lambda: iter([images]),
        split=_split_of_cifar(file),
    )


def _rows(blocks: Iterator[bytes], row: int, *, skip: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Regroup a stream into arrays [n, row] of whole rows, after the first ``skip`` bytes. Bytes at
    the end that fill no whole row are dropped."""
    rest = b""
    for block in blocks:
        data, skip = rest + block[skip:], max(0, skip - len(block))
        whole = len(data) // row * row
        rest = data[whole:]
        if whole:
            yield np.frombuffer(data[:whole], np.uint8).reshape(-1, row)


def _npy(
    name: str, digest: str, head: bytes, blocks: Callable[[], Iterator[bytes]], split: str = TRAIN
) -> ImageFile:
    """Return the images of an array in NumPy's format, which begins with ``head``."""
    dims, dtype, start = _npy_header(name, head)
    if dtype != np.uint8 or len(dims) not in (3, 4) or dims[3:] not in ((), (1,), (3,)):
        raise UserError(
            f"{name} is {dtype} {list(dims)}; images are uint8 [N, height, width, 3] or "
            "[N, height, width]"
        )
    count, height, width = dims[:3]
    shape = height, width, dims[3] if len(dims) == 4 else 1

    def read() -> Iterator[Pixels]:
        left = count
        for rows in _rows(blocks(), math.prod(shape), skip=start):
            yield rows[:left].reshape(-1, *shape)
            left -= len(rows[:left])
        if left:
            raise UserError(
                f"{name} is truncated: {left:,} of its {count:,} images are missing; restore it"
            )

    if not count or not height * width:
        raise UserError(f"{name} has no images: its shape is {list(dims)}; leave it out")
    return ImageFile(name=name, digest=digest, count=count, shape=shape, read=read, split=split)


def _npy_header(name: str, head: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    """Return the shape, the dtype and the offset of the data of an array. Raises UserError."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            dims, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            dims, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    except ValueError as error:
        raise UserError(f"{name} is no valid NumPy array: {error}; restore it") from None
    if fortran and len(dims) > 1:
        raise UserError(f"{name} is in Fortran order; save numpy.ascontiguousarray of it")
    return dims, dtype, stream.tell()


def _npz(file: DataFile, key: str) -> list[ImageFile]:
    """Return the arrays of images in an .npz, one per split."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            heads = {
                name: archive.open(name).read(1 << 16)
                for name in archive.namelist()
                if name.endswith(".npy")
            }
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{file.name} is a corrupt .npz: {error}; restore it") from None
    arrays: dict[str, ImageFile] = {}
    for member, head in heads.items():
        array, name = member.removesuffix(".npy"), f"{file.name}: {member.removesuffix('.npy')}"
        dims, dtype, _ = _npy_header(name, head)
        if dtype == np.uint8 and len(dims) in (3, 4):
            split = next((split for split in SPLITS if split in array.lower()), TRAIN)
            digest = f"{file.digest} {array}"
            arrays[array] = _npy(name, digest, head, _member_blocks(file, member), split)
    if not arrays:
        raise NotImagesError("contains no array of images: uint8 [N, H, W, 3] or [N, H, W]")
    if key in arrays:
        return [replace(arrays[key], split=TRAIN)]
    if len({file.split for file in arrays.values()}) < len(arrays):
        raise UserError(
            f"{file.name} has several arrays of images; set data.key to one of "
            f"{', '.join(map(repr, arrays))}"
        )
    return list(arrays.values())


def _member_blocks(file: DataFile, member: str) -> Callable[[], Iterator[bytes]]:
    def blocks() -> Iterator[bytes]:
        try:
            with zipfile.ZipFile(file.path) as archive, archive.open(member) as stream:
                while block := stream.read(BLOCK):
                    yield block
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{file.name} is a corrupt .npz: {error}; restore it") from None

    return blocks


def _picture(file: DataFile) -> ImageFile:
    """Return the image of a PNG or JPEG file. Transparency is ignored."""
    from PIL import Image, UnidentifiedImageError

    def decode(mode: str) -> Iterator[Pixels]:
        try:
            with Image.open(io.BytesIO(b"".join(file.blocks()))) as image:
                pixels = np.asarray(image.convert(mode))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(
                f"{file.name} cannot be decoded: {error}; restore it or leave it out"
            ) from None
        yield pixels.reshape(1, *pixels.shape[:2], -1)

    try:
        with Image.open(file.path) as image:
            (width, height), found = image.size, image.mode
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{file.name} cannot be decoded: {error}; restore it or leave it out"
        ) from None
    if found.startswith(("I", "F")):
        raise UserError(f"{file.name} has more than 8 bits per channel; convert it to 8 bits")
    mode = "L" if found in ("1", "L", "LA") else "RGB"
    return ImageFile(
        name=file.name,
        digest=file.digest,
        count=1,
        shape=(height, width, len(mode)),
        read=lambda: decode(mode),
    )
