"""Codebooks, against a search over all colours."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from engine.data.images.codebook import (
    Codebook,
    fit_colours,
    grey_levels,
    pack,
    sample_pixels,
)
from engine.errors import UserError
from tests.support.image_data import Pixels, drawn


def nearest(images: Pixels, colours: np.ndarray) -> np.ndarray:
    """Return the id of the nearest colour to each pixel [n, height x width]: the first of the
    nearest."""
    pixels = images.reshape(len(images), -1, 1, images.shape[-1]).astype(np.float64)
    ids: np.ndarray = ((pixels - colours.astype(np.float64)) ** 2).sum(-1).argmin(-1)
    return ids


@pytest.fixture
def codebook() -> Codebook:
    colours = np.random.default_rng(3).integers(0, 256, (40, 3)).astype(np.float32) + 0.25
    colours[7] = colours[5]  # a colour twice: its first id is taken
    return Codebook(colours=colours, height=9, width=8)


def test_each_pixel_gets_the_nearest_colour(codebook: Codebook) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 8, 3)).astype(np.uint8)
    expected = nearest(images, codebook.colours)
    assert np.array_equal(codebook.encode(images[:10]), expected[:10])
    assert np.array_equal(codebook.encode(images), expected), "also from the table of colours"
    assert 7 not in codebook.encode(images)


def test_decoded_images_have_the_colours_of_their_ids(codebook: Codebook) -> None:
    images = drawn(3, 9, 8)
    decoded = codebook.decode(codebook.encode(images))
    expected = codebook.colours[nearest(images, codebook.colours)].reshape(images.shape)
    assert np.array_equal(decoded, expected.round())
    assert np.array_equal(codebook.encode(decoded), codebook.encode(images))


def test_a_random_order_of_pixels_is_fixed_and_inverted(codebook: Codebook) -> None:
    images = drawn(3, 9, 8)
    shuffled = Codebook(colours=codebook.colours, height=9, width=8, pixel_order=4)
    ids, plain = shuffled.encode(images), codebook.encode(images)
    assert np.array_equal(ids, plain[:, shuffled.order])
    assert not np.array_equal(ids, plain)
    assert sorted(shuffled.order) == list(range(72))
    assert np.array_equal(shuffled.decode(ids), codebook.decode(plain))


def test_grey_levels_without_loss() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    book = Codebook(colours=grey_levels(256), height=16, width=16)
    assert np.array_equal(book.decode(book.encode(images)), images)


def test_fitted_colours_of_clusters_are_their_means() -> None:
    centres = np.array([[20, 30, 40], [200, 40, 60], [60, 220, 180]])
    noise = np.random.default_rng(1).integers(-3, 4, (3, 50, 3))
    pixels = (centres[:, None] + noise).astype(np.uint8)
    found = fit_colours(pack(pixels.reshape(-1, 3)), 3)
    expected = pixels.reshape(3, 50, 3).mean(1)
    assert np.allclose(found[found[:, 0].argsort()], expected[expected[:, 0].argsort()], atol=0.01)


def test_no_fitted_colour_is_dead() -> None:
    """Most pixels are black, so that random first colours are often black, too."""
    random = np.random.default_rng(2)
    pixels = np.zeros((4000, 3), np.uint8)
    pixels[:200] = random.integers(0, 256, (200, 3))
    colours = fit_colours(pack(pixels), 64)
    used = np.unique(nearest(pixels[None, :, None], colours))
    assert len(used) == 64
    assert colours.dtype == np.float32
    assert np.array_equal(fit_colours(pack(pixels), 64), colours), "the same in every run"


def test_few_colours_are_all_in_the_codebook() -> None:
    pixels = np.array([[1, 2, 3], [250, 2, 3], [9, 9, 9]], np.uint8).repeat(5, axis=0)
    colours = fit_colours(pack(pixels), 8)
    assert colours.shape == (8, 3)
    assert set(map(tuple, colours)) == set(map(tuple, pixels))


def test_five_pixels_of_each_image_are_sampled() -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((6, 4, 4, 3), np.uint8)
    pixels = sample_pixels(iter([images[:4], images[4:]]))
    assert np.array_equal(pixels, pack(images[:, 0, 0]).repeat(5))


def test_state_is_json_and_gives_the_same_codebook(codebook: Codebook) -> None:
    counts = np.arange(40)
    book = Codebook(colours=codebook.colours, height=9, width=8, pixel_order=6, first=counts)
    again = Codebook.load(json.loads(json.dumps(book.state())))
    assert again.encodes_like(book)
    assert again.first is not None
    assert np.array_equal(again.first, counts)
    again.require_like(book)
    with pytest.raises(UserError, match=r"another codebook .* set data.codebook"):
        codebook.require_like(book)


@pytest.mark.parametrize(
    "change", [{"codebook": [[1, 2]]}, {"codebook": "x"}, {"height": 0}, {"first": [1]}]
)
def test_corrupt_state_is_rejected(codebook: Codebook, change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="codebook is corrupt"):
        Codebook.load(codebook.state() | change)
    state = codebook.state()
    state.pop("width")
    with pytest.raises(UserError, match="codebook is corrupt"):
        Codebook.load(state)


def test_missing_scikit_learn_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UserError, match=r"scikit-learn is missing.*; pip install scikit-learn"):
        fit_colours(np.arange(10), 3)
