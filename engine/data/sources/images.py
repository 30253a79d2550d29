"""Images as rows of pixels, each pixel an id of a codebook. The default is scikit-learn's digits.

Ids are cached like those of text. The codebook is stored where a tokenizer is: in the run, its
checkpoints and its exports.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config.splits import TRAIN
from engine.data.batches.sampler import permutation
from engine.data.images.codebook import (
    Codebook,
    fit_colours,
    grey_levels,
    require_size,
    require_sklearn,
    sample_pixels,
)
from engine.data.images.grid import write_codebook_error
from engine.data.images.image_files import ImageFiles, open_images
from engine.data.images.image_formats import ImageFile
from engine.data.images.image_split import ImageSplit, require_seq_len
from engine.data.images.load_codebook import load_colours
from engine.data.images.variants import vary
from engine.data.source import TOKENS, Corpus, SourceRequest
from engine.data.token_files.token_cache import TokenFile, Write, load_or_build
from engine.errors import UserError

FORMAT = 1  # increase it when the same images are encoded to other ids than before
COLOURS, GREY_LEVELS, DIGITS_LEVELS = 512, 256, 17
"""Default sizes of codebooks: of images in colour, of grey ones, of the built-in digits."""
COUNTED = 5000
"""Maximum number of images whose first ids are counted."""
DIGITS, VARIANTS = 202, 203  # random streams, one per use
SHOWN = 8
"""Images in the picture of the codebook's error."""


def vocabulary_size(request: SourceRequest) -> int:
    """Return the size of the codebook, without encoding an image. Raises UserError."""
    return request.codes or _codebook(request, _open_files(request)[TRAIN]).size or COLOURS


def open_corpus(request: SourceRequest) -> Corpus:
    files = _open_files(request)
    train = files.pop(TRAIN)
    height, width, _ = train.shape
    require_seq_len(request.seq_len, height, width)
    encoded = _encoded(train, _codebook(request, train), request)
    codebook = Codebook.load(encoded.about["tokenizer"])
    images = encoded.ids.reshape(-1, codebook.pixels)
    held_out = int(len(images) * request.validation)
    if held_out == len(images) or (request.validation > 0 and held_out == 0):
        raise UserError(
            f"{train.name}: data.validation={request.validation} of {len(images):,} images leaves "
            f"{len(images) - held_out:,} to train on and {held_out:,} to validate; set "
            "data.validation=0.0, or another fraction"
        )
    kept, tail = images[: len(images) - held_out], images[len(images) - held_out :]
    every = -(-len(kept) // COUNTED)
    first = np.bincount(kept[::every, 0], minlength=codebook.size)
    codebook = replace(codebook, first=first.astype(np.int64))
    varied = _with_variants(kept, train, codebook, request)
    others = {name: _encoded(other, codebook, request).ids for name, other in files.items()}
    digests = [train.digest, *(f"{name} {other.digest}" for name, other in files.items())]
    more = [request.variants] if request.variants > 1 else []  # none: as in older runs
    count = f", {request.variants} variants of each to train on" if request.variants > 1 else ""
    return Corpus(
        train=ImageSplit(varied, request.seq_len),
        validation=ImageSplit(tail, request.seq_len),
        tokenizer=codebook,
        description=(
            f"{train.name}: {train.count:,} images, {codebook}{count}, "
            f"root mean square error {encoded.about['error']:.1f} of 255"
        ),
        fingerprint=_digest([*digests, request.seq_len, held_out, codebook.state(), *more]),
        other_splits={
            name: ImageSplit(ids.reshape(-1, codebook.pixels), request.seq_len)
            for name, ids in others.items()
        },
    )


def _open_files(request: SourceRequest) -> dict[str, ImageFiles]:
    if request.path is None:
        return digits()
    return open_images(request.path, request.key, records=request.cache / "digests")


def digits() -> dict[str, ImageFiles]:
    """Return the 1,797 grey digits of scikit-learn, 8 x 8 pixels of 17 levels, in a fixed random
    order: scikit-learn sorts them by writer, so the tail would have other writers than the rest.
    Raises UserError if scikit-learn is missing."""
    levels = require_sklearn("sklearn.datasets").load_digits().images
    shuffled = levels[permutation(len(levels), 0, DIGITS)]
    pixels = (shuffled * 255 / 16).round().astype(np.uint8)[..., None]
    file = ImageFile(
        name="digits",
        digest=hashlib.sha256(pixels.tobytes()).hexdigest(),
        count=len(pixels),
        shape=pixels.shape[1:],
        read=lambda: iter([pixels]),
    )
    name = "the built-in images (digits of scikit-learn, as data.path is not given)"
    return {TRAIN: ImageFiles(name=name, files=[file], shape=file.shape)}


def _codebook(request: SourceRequest, train: ImageFiles) -> Codebook:
    """Return the codebook of a request; without colours if it has to be fitted."""
    height, width, channels = train.shape
    if request.trained_with is not None:
        codebook = Codebook.load(request.trained_with)
        require_size(codebook, train.shape, train.name)
        return replace(codebook, first=None)
    if request.codebook is not None:
        colours = load_colours(request.codebook)
        if request.codes not in (None, len(colours)):
            raise UserError(
                f"data.codes={request.codes} differs from the {len(colours)} codes of "
                f"data.codebook={request.codebook!r}; remove one of them"
            )
    elif channels == 1:
        default = DIGITS_LEVELS if request.path is None else GREY_LEVELS
        colours = grey_levels(request.codes or default)
    else:
        colours = np.empty((0, 3), np.float32)
    return Codebook(colours=colours, height=height, width=width, pixel_order=request.pixel_order)


def _encoded(images: ImageFiles, codebook: Codebook, request: SourceRequest) -> TokenFile:
    """Return the ids of images [images x pixels]. A codebook without colours is first fitted to the
    images."""
    size = codebook.size or request.codes or COLOURS
    images = images.with_channels(codebook.channels)
    state = codebook.state() | {"first": None}
    path = request.cache / f"images-{_digest([FORMAT, images.digest, size, state])[:32]}{TOKENS}"
    if not path.exists():  # on all ranks: any of them may build it, and not all of them print
        request.notify(
            f"encoding {images.name} ({images.count:,} images) by {size:,} codes, once; the ids, "
            f"and a picture of the codebook's error, are cached in {request.cache}"
        )

    def build(write: Write) -> tuple[str, dict[str, Any]]:
        fitted = codebook
        if not codebook.size:
            colours = fit_colours(sample_pixels(images.blocks()), size)
            fitted = replace(codebook, colours=colours)
        squares, values = 0.0, 0
        for block in images.blocks():
            ids = fitted.encode(block)
            write(ids.astype("<u2"))
            squares += float(((fitted.decode(ids).astype(np.float32) - block) ** 2).sum())
            values += block.size
        write_codebook_error(path.with_suffix(".png"), images.first(SHOWN), fitted)
        return "<u2", {"tokenizer": fitted.state(), "error": (squares / values) ** 0.5}

    return load_or_build(path, build, start=request.start)


def _with_variants(
    kept: NDArray[Any], train: ImageFiles, codebook: Codebook, request: SourceRequest
) -> NDArray[Any]:
    """Return the ids of the images to train on: ``kept`` [n, pixels], then the ids of data.variants
    variants of each image [n x data.variants, pixels]. ``kept`` has the ids of the first n images
    of ``train``."""
    if request.variants == 1:
        return kept
    images = train.with_channels(codebook.channels)
    state = codebook.state() | {"first": None}
    content = [FORMAT, images.digest, state, len(kept), request.variants]
    path = request.cache / f"variants-{_digest(content)[:32]}{TOKENS}"
    if not path.exists():
        request.notify(
            f"making {request.variants} variants of {len(kept):,} images, once; the ids are cached "
            f"in {request.cache}"
        )

    def build(write: Write) -> tuple[str, dict[str, Any]]:
        write(kept.astype("<u2"))
        rng = np.random.default_rng(VARIANTS)
        for _ in range(1, request.variants):
            left = len(kept)
            for block in images.blocks():
                write(codebook.encode(vary(block[:left], rng)).astype("<u2"))
                left -= min(left, len(block))
        return "<u2", {}

    return load_or_build(path, build, start=request.start).ids.reshape(-1, codebook.pixels)


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
