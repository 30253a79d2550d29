"""Generated images: pixels against a model without cache, and a run from its data to a PNG file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.images.codebook import Codebook, grey_levels
from engine.data.images.load_codebook import load_colours
from engine.data.sources.images import digits as built_in_digits
from engine.errors import UserError
from engine.generation.images import complete, draw_starts, given_part
from engine.generation.text import SamplingOptions, generate_ids
from engine.inout.open_model import open_saved_model
from launch import cli
from tests.support.jobs import TINY, Job, run
from tests.support.programs import by_hand
from tests.support.small_gpt import SIZES, small_gpt

BOOK = Codebook(colours=grey_levels(29), height=4, width=4)  # 15 positions of SIZES.block_size


@pytest.mark.parametrize("given", [1, 7])
def test_each_image_continues_as_it_would_alone(given: int) -> None:
    model, sampling = small_gpt(), SamplingOptions(tokens=16 - given, top_k=9, seed=5)
    ids = np.random.default_rng(0).integers(0, 29, (3, given))
    (found,) = complete(model, BOOK, ids, sampling)
    assert found.shape == (3, 16)
    for number, (image, start) in enumerate(zip(found.tolist(), ids.tolist(), strict=True)):
        alone = generate_ids(model, start, sampling, vocabulary=29, number=number)
        assert image == start + list(alone)


def test_images_after_a_full_batch_draw_from_generators_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = np.random.default_rng(0).integers(0, 29, (5, 2))
    (whole,) = complete(small_gpt(), BOOK, ids, SamplingOptions())
    monkeypatch.setattr("engine.generation.images.AT_ONCE", 2)
    parts = list(complete(small_gpt(), BOOK, ids, SamplingOptions()))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert np.array_equal(np.concatenate(parts), whole)


def test_codes_that_the_codebook_lacks_are_not_drawn() -> None:
    """A vocabulary may be padded."""
    small = Codebook(colours=grey_levels(4), height=4, width=4)
    (found,) = complete(small_gpt(), small, np.zeros((8, 1), np.int64), SamplingOptions())
    assert found.max() < 4


def test_a_model_with_fewer_positions_than_an_image_is_rejected() -> None:
    large = Codebook(colours=grey_levels(29), height=5, width=4)
    with pytest.raises(UserError, match=f"has {SIZES.block_size} positions, and an image has 20"):
        list(complete(small_gpt(), large, np.zeros((1, 1), np.int64), SamplingOptions()))


def test_first_ids_are_drawn_in_proportion_to_their_counts_plus_one() -> None:
    counts = np.array([0, 9, 89, 0])
    book = Codebook(colours=grey_levels(4), height=4, width=4, first=counts)
    found = np.bincount(draw_starts(book, 20_000, 3)[:, 0], minlength=4) / 20_000
    assert found == pytest.approx((counts + 1) / (counts + 1).sum(), abs=0.02)
    assert found[0] > 0


def test_given_parts_are_rows_or_pixels() -> None:
    ids = np.arange(16)[None]
    assert given_part(BOOK, ids, 0.5).shape == (1, 8)
    assert given_part(BOOK, ids, 0.3).shape == (1, 4)
    assert given_part(BOOK, ids, 0.01).shape == (1, 1)
    assert given_part(BOOK, ids, 1.0).shape == (1, 15)
    mixed = Codebook(colours=grey_levels(29), height=4, width=4, pixel_order=1)
    assert given_part(mixed, ids, 0.3).shape == (1, 5)


# A run on the built-in digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of four steps, with checkpoints."""
    path = tmp_path_factory.mktemp("digits")
    (path / "tiny.py").write_text(TINY)
    overrides = "data.type=images", "SEQ_LEN=63", "model.vocab_size=17", "log.dir=run"
    (ended,) = run(Job(folder=path, overrides=overrides))
    assert ended.error == "", ended.err
    assert ended.out.splitlines()[-1].endswith(" generate run")
    return path / "run"


def test_the_codebook_is_with_the_run_its_checkpoints_and_exports(digits: Path) -> None:
    saved = json.loads((digits / "tokenizer.json").read_text())
    assert (saved["type"], saved["height"], saved["width"], len(saved["codebook"])) == (
        "images",
        8,
        8,
        17,
    )
    places = [digits / "checkpoints" / "step-00000004", digits / "model.safetensors"]
    for kind in ("hf", "safetensors"):
        out = digits.parent / f"export-{kind}"
        assert cli.main(["export", str(digits), "--to", kind, "--out", str(out)], {}) == 0
        places.append(out)
    for place in places:
        assert open_saved_model(place).tokenizer == saved
    for place in places[:3]:
        assert np.array_equal(load_colours(str(place)), np.float32(saved["codebook"]))


def test_completed_digits_are_drawn_beside_the_true_ones(
    digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(digits.parent)
    environ = {"XDG_CACHE_HOME": str(digits.parent)}
    argv = ["generate", "run", "--complete", "--num", "3", "--given", "0.25", "--top-k", "5"]
    assert cli.main(argv, environ) == 0
    captured = capsys.readouterr()
    assert captured.out == "run/completed.png\n"
    assert "given, completed, true" in captured.err
    drawing = np.asarray(Image.open("run/completed.png"))
    cells = [drawing[top : top + 64 : 8, ..., 0] for top in (0, 76, 152)]
    parts = [[cell[:, left : left + 64 : 8] for left in (0, 68, 136)] for cell in cells]
    held_out = built_in_digits()["train"].first(1797)[-179:, ..., 0]
    for (given, completed, true), image in zip(parts, held_out, strict=False):
        assert np.array_equal(true, image)
        assert np.array_equal(given[:2], true[:2])
        assert (given[2:] == 127).all()
        assert np.array_equal(completed[:2], true[:2])
        assert not np.array_equal(completed, true)


def test_images_are_generated_from_an_export_alone(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["export", str(digits), "--to", "hf", "--out", str(out)], {}) == 0
    png = tmp_path / "images.png"
    assert cli.main(["generate", str(out), "--num", "5", "--out", str(png)], {}) == 0
    assert np.asarray(Image.open(png)).shape == (64 + 12 + 64, 3 * 64 + 2 * 12, 3)
    images = np.zeros((4, 8, 8), np.uint8)
    np.save(tmp_path / "given.npy", images)
    options = ["--complete", str(tmp_path / "given.npy"), "--num", "2"]
    assert cli.main(["generate", str(out), *options], {}) == 0
    assert (out / "completed.png").is_file()
    capsys.readouterr()
    np.save(tmp_path / "given.npy", np.zeros((4, 9, 8), np.uint8))
    assert cli.main(["generate", str(out), *options], {}) == 2
    assert "has images of 9 x 8 pixels, the model is of 8 x 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "a"], "--prompt is for models of text, and this one is of images"),
        (["--tokens", "3"], "--tokens is for models of text"),
        (["--given", "0.5"], "--given needs --complete"),
        (["--complete", "nowhere"], "nowhere does not exist"),
    ],
)
def test_options_that_images_do_not_have_are_rejected(
    digits: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.main(["generate", str(digits), *options], {}) == 2
    assert message in capsys.readouterr().err


def test_evaluation_is_in_bits_per_dimension(digits: Path) -> None:
    (ended,) = by_hand(1, ["run", "--json"], digits.parent, program="evaluate_gpt")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["targets"] == 179 * 63
    assert found["bits_per_dimension"] == pytest.approx(found["loss"] / math.log(2))
    assert found["dimension"] == "the code of a pixel, one of 17"
    assert (found["bytes"], found["bits_per_byte"]) == (None, None)


def test_images_of_another_codebook_are_not_evaluated(digits: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.zeros((20, 8, 8), np.uint8))
    overrides = [f"data.path={tmp_path}/grey.npy"]
    (ended,) = by_hand(1, ["run", *overrides], digits.parent, program="evaluate_gpt")
    assert ended.code == 2
    assert "the images have another codebook (256 grey levels" in ended.err
    reuse = [*overrides, "data.codebook=run"]
    (ended,) = by_hand(1, ["run", *reuse], digits.parent, program="evaluate_gpt")
    assert ended.code == 0, ended.err
    assert "bits/dim" in ended.out


def test_torch_is_not_seeded_by_generation() -> None:
    before = torch.get_rng_state()
    list(complete(small_gpt(), BOOK, draw_starts(BOOK, 2, 0), SamplingOptions()))
    assert torch.equal(torch.get_rng_state(), before)
