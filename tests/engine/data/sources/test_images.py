"""The source of images: samples, codebook, cache and splits, against a search over all colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.images.codebook import Codebook
from engine.data.images.image_split import ImageSplit
from engine.data.images.variants import vary
from engine.data.source import Corpus
from engine.data.sources import images as source
from engine.data.sources.images import open_corpus
from engine.errors import UserError
from models.parallel.targets import IGNORED
from tests.engine.data.support import Ask
from tests.support.image_data import drawn, write_cifar

COLOURS = [[20.0, 30.0, 40.0], [200.5, 40.0, 60.0], [60.0, 220.0, 180.25], [255.0, 255.0, 255.0]]


def codebook_of(corpus: Corpus) -> Codebook:
    assert isinstance(corpus.tokenizer, Codebook)
    return corpus.tokenizer


def ids_of(split: Any) -> Any:
    assert isinstance(split, ImageSplit)
    return split.images


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Write 40 images of CIFAR-10's binary version."""
    write_cifar(tmp_path / "data_batch_1.bin", drawn(40))
    return tmp_path / "data_batch_1.bin"


def test_a_sample_is_an_image_and_shares_no_token(ask: Ask, cifar: Path) -> None:
    np.save(cifar.parent / "colours.npy", np.array(COLOURS))
    asked = ask(cifar, seq_len=1023, codebook=str(cifar.parent / "colours.npy"), validation=0.25)
    corpus = open_corpus(asked)
    pixels = drawn(40).reshape(40, 1024, 1, 3).astype(float)
    expected = ((pixels - COLOURS) ** 2).sum(-1).argmin(-1)
    assert (corpus.train.samples, corpus.validation.samples) == (30, 10)
    ids, targets = corpus.train.batch(np.array([3, 29]))
    assert np.array_equal(ids, expected[[3, 29], :-1])
    assert np.array_equal(targets, expected[[3, 29], 1:])
    assert np.array_equal(corpus.validation.batch(np.array([0]))[0], expected[[30], :-1])
    assert corpus.train.count_targets(np.array([3, 29])) == 2 * 1023
    assert np.array_equal(codebook_of(corpus).colours, np.array(COLOURS, np.float32))


def test_at_full_length_the_last_position_has_no_target(ask: Ask, cifar: Path) -> None:
    whole = open_corpus(ask(cifar, seq_len=1024, codes=16)).train
    short = open_corpus(ask(cifar, seq_len=1023, codes=16)).train
    ids, targets = whole.batch(np.array([5]))
    assert np.array_equal(ids[:, :-1], short.batch(np.array([5]))[0])
    assert np.array_equal(targets[:, :-1], short.batch(np.array([5]))[1])
    assert targets[0, -1] == IGNORED
    assert whole.count_targets(np.array([5])) == (targets != IGNORED).sum()


@pytest.mark.parametrize("seq_len", [1, 1022, 1025])
def test_another_length_is_rejected_with_the_ones_that_fit(
    ask: Ask, cifar: Path, seq_len: int
) -> None:
    message = rf"SEQ_LEN={seq_len} does not fit images of 32 x 32 pixels; .*=1023, .*=1024, "
    with pytest.raises(UserError, match=message):
        open_corpus(ask(cifar, seq_len=seq_len))


def test_ids_are_encoded_once(ask: Ask, cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    first = open_corpus(ask(cifar, seq_len=1023, codes=16, notify=lines.append))
    assert lines[0].startswith("encoding data.path=")
    monkeypatch.setattr(source, "fit_colours", None)
    monkeypatch.setattr(Codebook, "encode", None)
    again = open_corpus(ask(cifar, seq_len=1023, codes=16, notify=lines.append))
    assert len(lines) == 1
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(ids_of(again.train), ids_of(first.train))


def test_the_error_of_the_codebook_is_drawn_and_reported(
    ask: Ask, cifar: Path, tmp_path: Path
) -> None:
    corpus = open_corpus(ask(cifar, seq_len=1023, codes=3))
    book, images = codebook_of(corpus), drawn(40)
    ids = np.concatenate([ids_of(corpus.train), ids_of(corpus.validation)])
    error = np.sqrt(((book.decode(ids).astype(float) - images) ** 2).mean())
    assert f"root mean square error {error:.1f} of 255" in corpus.description
    (picture,) = (tmp_path / "cache").glob("*.png")
    drawing = np.asarray(Image.open(picture)).astype(int)
    first = drawing[:64:2, :64:2], drawing[68:132:2, :64:2], drawing[136:200:2, :64:2]
    assert np.array_equal(first[0], images[0])
    assert np.array_equal(first[1], book.decode(ids[:1])[0])
    assert np.array_equal(first[2], abs(first[0] - first[1]))


@pytest.mark.parametrize(
    "changes",
    [{"codes": 8}, {"pixel_order": 1}, {"validation": 0.5}, {"seq_len": 1024}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_samples_have_another_fingerprint(
    ask: Ask, cifar: Path, changes: dict[str, Any]
) -> None:
    asked = {"seq_len": 1023, "codes": 16}
    corpora = [open_corpus(ask(cifar, **asked | more)) for more in ({}, changes)]
    assert corpora[0].fingerprint != corpora[1].fingerprint


def test_other_images_have_another_fingerprint(ask: Ask, cifar: Path) -> None:
    first = open_corpus(ask(cifar, seq_len=1023, codes=16))
    cifar.write_bytes(cifar.read_bytes()[:-1] + b"\7")
    assert open_corpus(ask(cifar, seq_len=1023, codes=16)).fingerprint != first.fingerprint


def test_the_order_of_pixels_is_that_of_the_seed(ask: Ask, cifar: Path) -> None:
    plain = open_corpus(ask(cifar, seq_len=1023, codes=16))
    mixed = open_corpus(ask(cifar, seq_len=1023, codes=16, pixel_order=3))
    order = codebook_of(mixed).order
    assert np.array_equal(ids_of(mixed.train), ids_of(plain.train)[:, order])


def test_first_ids_of_training_images_are_counted(ask: Ask, cifar: Path) -> None:
    corpus = open_corpus(ask(cifar, seq_len=1023, codes=16, validation=0.5))
    counts = codebook_of(corpus).first
    assert counts is not None
    assert counts.tolist() == np.bincount(ids_of(corpus.train)[:, 0], minlength=16).tolist()
    assert counts.sum() == 20


def test_a_codebook_is_reused_by_path(ask: Ask, cifar: Path, tmp_path: Path) -> None:
    own = codebook_of(open_corpus(ask(cifar, seq_len=1023, codes=16)))
    run, checkpoint, hf = (tmp_path / name for name in ("run", "step-00000001", "hf"))
    for folder in (run, checkpoint, hf):
        folder.mkdir()
    (run / "tokenizer.json").write_text(json.dumps(own.state()))
    (hf / "codebook.json").write_text(json.dumps(own.state()))
    (checkpoint / "training.json").write_text(json.dumps({"tokenizer": own.state()}))
    np.save(tmp_path / "c.npy", own.colours)
    torch.save(torch.from_numpy(own.colours), tmp_path / "c.pt")
    write_cifar(tmp_path / "other.bin", drawn(10, seed=9))
    for path in (
        run,
        run / "tokenizer.json",
        checkpoint,
        hf,
        tmp_path / "c.npy",
        tmp_path / "c.pt",
    ):
        corpus = open_corpus(ask(tmp_path / "other.bin", seq_len=1023, codebook=str(path)))
        assert codebook_of(corpus).encodes_like(own), path
    other = open_corpus(ask(tmp_path / "other.bin", seq_len=1023, codes=16))
    assert not codebook_of(other).encodes_like(own)


def test_unusable_codebooks_are_rejected(ask: Ask, cifar: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "row.npy", np.zeros(6))
    np.save(tmp_path / "large.npy", np.full((4, 3), 256.0))
    np.save(tmp_path / "grey.npy", np.zeros((4, 1)))
    np.save(tmp_path / "four.npy", np.zeros((4, 3)))
    (tmp_path / "char.json").write_text('{"type": "char", "characters": "ab"}')
    (tmp_path / "empty").mkdir()
    torch.save({"a": Path("x")}, tmp_path / "objects.pt")
    for name, message in (
        ("row.npy", r"is float64 \[6\], not \[size, 3\]"),
        ("large.npy", "has values outside 0 to 255"),
        ("grey.npy", "has images in colour, and the codebook has grey levels; convert them"),
        ("char.json", "has no codebook of images"),
        ("empty", "has no codebook of images"),
        ("objects.pt", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            open_corpus(ask(cifar, seq_len=1023, codebook=str(tmp_path / name)))
    with pytest.raises(UserError, match=r"data\.codes=5 differs from the 4 codes of data.codebook"):
        open_corpus(ask(cifar, seq_len=1023, codebook=str(tmp_path / "four.npy"), codes=5))


def test_built_in_digits_are_without_loss(ask: Ask) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    corpus = open_corpus(ask(seq_len=63))
    assert codebook_of(corpus).size == 17
    ids = np.concatenate([ids_of(corpus.train), ids_of(corpus.validation)])
    expected = datasets.load_digits().data.astype(int)
    assert sorted(map(tuple, ids)) == sorted(map(tuple, expected))
    half = len(ids) // 2
    assert not np.array_equal(ids[:half], expected[:half]), "writers are mixed"
    assert "error 0.0" in corpus.description


def test_grey_images_have_256_levels_unless_told_otherwise(ask: Ask, tmp_path: Path) -> None:
    grey = drawn(20, 8, 8)[..., 0]
    np.save(tmp_path / "grey.npy", grey)
    corpus = open_corpus(ask(tmp_path / "grey.npy", seq_len=63))
    assert np.array_equal(ids_of(corpus.train), grey.reshape(20, 64)[:18])
    few = open_corpus(ask(tmp_path / "grey.npy", seq_len=63, codes=2))
    assert np.array_equal(ids_of(few.train), grey.reshape(20, 64)[:18] > 127)


def test_the_test_batch_of_cifar_is_a_split_of_its_own(ask: Ask, cifar: Path) -> None:
    write_cifar(cifar.parent / "test_batch.bin", drawn(6, seed=5))
    corpus = open_corpus(ask(cifar.parent, seq_len=1023, codes=16, validation=0.0))
    assert (corpus.train.samples, corpus.validation.samples) == (40, 0)
    test = corpus.other_splits["test"]
    assert np.array_equal(ids_of(test), codebook_of(corpus).encode(drawn(6, seed=5)))
    alone = open_corpus(ask(cifar, seq_len=1023, codes=16, validation=0.0))
    assert codebook_of(alone).encodes_like(codebook_of(corpus)), "fitted to the training images"


def test_size_of_the_vocabulary_is_known_before_images_are_encoded(
    ask: Ask, cifar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(cifar.parent / "colours.npy", np.array(COLOURS))
    np.save(cifar.parent / "grey.npy", np.zeros((2, 3, 3), np.uint8))
    monkeypatch.setattr(Codebook, "encode", None)
    for path, changes, size in (
        (cifar, {}, 512),
        (cifar, {"codes": 16}, 16),
        (cifar, {"codebook": str(cifar.parent / "colours.npy")}, 4),
        (cifar.parent / "grey.npy", {}, 256),
        (None, {}, 17),
    ):
        assert source.vocabulary_size(ask(path, seq_len=1023, **changes)) == size


def test_too_few_images_are_rejected(ask: Ask, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", drawn(1, 8, 8))
    with pytest.raises(UserError, match="of 1 images leaves 1 to train on and 0 to validate"):
        open_corpus(ask(tmp_path / "one.npy", seq_len=63))


def test_variants_follow_the_training_images_and_resemble_them(ask: Ask, cifar: Path) -> None:
    plain = open_corpus(ask(cifar, seq_len=1023, codes=16, validation=0.5))
    varied = open_corpus(ask(cifar, seq_len=1023, codes=16, validation=0.5, variants=3))
    ids = ids_of(varied.train).reshape(3, 20, 1024)
    assert np.array_equal(ids[0], ids_of(plain.train))
    assert np.array_equal(ids_of(varied.validation), ids_of(plain.validation))
    assert codebook_of(varied).state() == codebook_of(plain).state()
    assert varied.fingerprint != plain.fingerprint
    again = open_corpus(ask(cifar, seq_len=1023, codes=16, validation=0.5, variants=3))
    assert np.array_equal(ids_of(again.train), ids_of(varied.train))
    assert again.fingerprint == varied.fingerprint


def test_variants_are_small_affine_maps_of_each_image() -> None:
    """A disc of a ninth of the image keeps its size and moves less than a tenth of the side."""
    rows, columns = np.mgrid[:30, :30]
    centres = np.array([[10, 19], [19, 10], [15, 14]])
    discs = np.stack([((rows - y) ** 2 + (columns - x) ** 2 < 32) * 200 for y, x in centres])
    images = np.repeat(discs[..., None], 3, axis=-1).astype(np.uint8)
    varied = vary(images, np.random.default_rng(1)).astype(float)
    assert varied.shape == images.shape
    assert (varied[..., 0] == varied[..., 1]).all()
    for image, result, centre in zip(images, varied, centres, strict=True):
        assert not np.array_equal(image, result)
        assert result.sum() == pytest.approx(image.sum(), rel=0.25)
        found = [(result[..., 0] * axis).sum() / result[..., 0].sum() for axis in (rows, columns)]
        assert np.hypot(*(found - centre)) < 3
