"""Generates images with a saved model: whole images, or the missing pixels of given images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.config.splits import TRAIN
from engine.data.batches.loader import load_batches
from engine.data.images.codebook import Codebook, require_size
from engine.data.images.grid import draw_grid
from engine.data.images.image_files import open_images
from engine.data.images.image_formats import Pixels
from engine.data.images.image_split import ImageSplit
from engine.data.source import default_cache
from engine.errors import UserError
from engine.generation.text import SamplingOptions, probabilities
from engine.plan import Plan
from models.gpt import GPT
from models.kv_cache import KVCache
from models.parallel.context import derive_seed

Ids = NDArray[np.int64]
"""Ids of images [n, pixels]."""
AT_ONCE = 64
"""Images that are generated together."""
UNKNOWN = 127
"""Grey of the pixels that are not given."""


def images_in_files(path: str, number: int, codebook: Codebook) -> Ids:
    """Return the token ids of the first ``number`` images in files. Raises UserError if the images
    cannot be encoded."""
    images = open_images(path, "")[TRAIN]
    require_size(codebook, images.shape, images.name)
    return codebook.encode(images.with_channels(codebook.channels).first(number)).astype(np.int64)


def held_out_images(plan: Plan, number: int, codebook: Codebook, environ: Mapping[str, str]) -> Ids:
    """Return the token ids of the first ``number`` images of the split that a run validates on.
    Raises UserError if the run's data is gone or changed."""
    batches = load_batches(plan.settings, data_size=1, cache=default_cache(environ))
    split, own = batches.validation.split, batches.corpus.tokenizer
    if not isinstance(split, ImageSplit) or not isinstance(own, Codebook):
        raise UserError(f"{plan.cite('data.type')} has no images; name files with --complete PATH")
    codebook.require_like(own)
    return split.images[:number].astype(np.int64)


def draw_starts(codebook: Codebook, number: int, seed: int) -> Ids:
    """Draw the first token ids of ``number`` images, [number, 1]. The probability of an id is
    proportional to 1 + the number of training images that begin with it."""
    counts = np.zeros(codebook.size) if codebook.first is None else codebook.first
    weights = torch.from_numpy(counts + 1.0)
    generator = torch.Generator().manual_seed(derive_seed("first", seed))
    return torch.multinomial(weights, number, True, generator=generator).numpy()[:, None]


def complete(
    model: GPT, codebook: Codebook, given: Ids, sampling: SamplingOptions
) -> Iterator[Ids]:
    """Yield the ids of whole images that begin with ``given`` [images, 1 or more], AT_ONCE images
    at a time.

    Raises:
        UserError: the model has too few positions for an image.
        RunError: the logits are not finite.
    """
    if model.config.block_size < codebook.pixels - 1:
        raise UserError(
            f"the model has {model.config.block_size:,} positions, and an image has "
            f"{codebook.pixels:,} pixels; use a model that was trained with SEQ_LEN="
            f"{codebook.pixels - 1} or more"
        )
    for start in range(0, len(given), AT_ONCE):
        part = torch.from_numpy(given[start : start + AT_ONCE])
        yield _complete(model, codebook, part, sampling, start).numpy()


@torch.no_grad()
def _complete(
    model: GPT, codebook: Codebook, ids: Tensor, sampling: SamplingOptions, number: int
) -> Tensor:
    """Complete images that begin with ``ids`` [images, given]; return ids [images, pixels]. Image i
    has its own random generator, seeded by the image's number among all images, ``number`` + i."""
    device, cache = model.parallel.device, KVCache(codebook.pixels - 1)
    generators = [
        torch.Generator().manual_seed(derive_seed("sample", sampling.seed, number + i))
        for i in range(len(ids))
    ]
    new = ids
    while ids.shape[1] < codebook.pixels:
        x = model.embed(new.to(device), start=cache.length)
        x = model(x, new.shape[1], cache=cache).unflatten(0, new.shape)[:, -1]
        logits = model.logits(x)[:, : codebook.size].cpu()
        drawn = [
            torch.multinomial(probabilities(row, sampling), 1, generator=generator)
            for row, generator in zip(logits, generators, strict=True)
        ]
        new = torch.stack(drawn)
        ids = torch.cat([ids, new], dim=1)
    return ids


def given_part(codebook: Codebook, images: Ids, share: float) -> Ids:
    """Return the first ids of each image, from which it is completed: a ``share`` of its rows of
    pixels, or of its pixels if the pixel order is random; at least one id, and never all."""
    row = codebook.width if codebook.pixel_order is None else 1
    given = round(share * codebook.pixels / row) * row
    return images[:, : min(max(given, 1), codebook.pixels - 1)]


def draw(codebook: Codebook, completed: Ids) -> NDArray[np.uint8]:
    """Draw images as a grid [H, W, 3] that is about square."""
    images = codebook.decode(completed)
    columns = int(np.ceil(len(images) ** 0.5))
    return draw_grid([[image] for image in images], columns)


def draw_completions(
    codebook: Codebook, given: int, completed: Ids, true: Ids
) -> NDArray[np.uint8]:
    """Draw, side by side, the ``given`` first pixels of each image, its completion and the true
    image, as a grid [H, W, 3]."""
    cells = list(
        zip(
            _masked(codebook, true, given),
            codebook.decode(completed),
            codebook.decode(true),
            strict=True,
        )
    )
    return draw_grid(cells, columns=max(1, int(len(cells) ** 0.5 / 1.5)))


def _masked(codebook: Codebook, ids: Ids, given: int) -> Pixels:
    """Decode ids into images, and colour the pixels after the first ``given`` in the grey
    UNKNOWN."""
    images = codebook.decode(ids)
    flat = images.reshape(len(images), codebook.pixels, -1)
    flat[:, codebook.order[given:]] = UNKNOWN
    return images
