"""The split 'validation' is made of the files of data.validation_path, or is a named split."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.data.batches.loader import TrainBatches
from engine.data.batches.windows import Windows
from engine.data.images.codebook import Codebook
from engine.data.source import Corpus
from engine.data.tokenizer import dump
from engine.data.tokenizers.char import Char
from engine.data.validation_files import open_with_validation
from engine.data.vocabulary.remap import use_saved_ids, vocabulary_size
from engine.errors import UserError
from tests.engine.data.support import Ask, tokenizer_of
from tests.support.image_data import drawn

TRAINED = "the quick brown fox jumps over the lazy dog; "
HELD_OUT = "xylophone jazz; "


def inputs_of(corpus: Corpus, name: str) -> str:
    """Decode the inputs of all samples of a split."""
    split = corpus.split(name)
    assert split.samples
    ids, _ = split.batch(np.arange(split.samples))
    return tokenizer_of(corpus).decode(ids.ravel())


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_validation_on_other_files_leaves_all_data_for_training(
    ask: Ask, tmp_path: Path, tokenizer: str
) -> None:
    train, held_out = tmp_path / "train.txt", tmp_path / "held-out.txt"
    train.write_text(TRAINED * 9)
    held_out.write_text(HELD_OUT * 9)
    request = ask(train, tokenizer=tokenizer, validation=0.0, seq_len=4)
    corpus = open_with_validation("auto", request, str(held_out))
    for name, text in (("train", TRAINED * 9), ("validation", HELD_OUT * 9)):
        decoded = inputs_of(corpus, name)
        assert text.startswith(decoded)
        assert len(text) - len(decoded) <= 16  # the last token is only a target; the rest of 4
    alone = open_with_validation("auto", request, None)
    assert tokenizer_of(alone).state() == tokenizer_of(corpus).state()
    assert alone.splits.keys() == {"train"}


def test_the_fingerprint_covers_both_files(ask: Ask, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("one", "two")}
    for name, file in files.items():
        file.write_text(TRAINED * 9 + name)

    def fingerprint(train: str, held_out: str | None) -> str:
        path = str(files[held_out]) if held_out else None
        request = ask(files[train], tokenizer="gpt2", validation=0.0)
        return open_with_validation("text", request, path).fingerprint

    pairs = [("one", None), ("one", "one"), ("one", "two"), ("two", "one")]
    assert len({fingerprint(*pair) for pair in pairs}) == 4
    before = fingerprint("one", "two")
    files["two"].write_text(TRAINED * 9 + "tow")
    assert fingerprint("one", "two") != before


def test_unusable_validation_files_are_rejected(ask: Ask, tmp_path: Path) -> None:
    train, other = tmp_path / "train.txt", tmp_path / "other.txt"
    train.write_text(TRAINED * 9)
    request = ask(train, validation=0.0)
    other.write_text("Ünknown " * 9)
    with pytest.raises(
        UserError,
        match=r"^data.validation_path=.*other.txt.* has no ids for 'Ü'; choose files without",
    ):
        open_with_validation("auto", request, str(other))
    other.write_text("a fox")
    with pytest.raises(UserError, match=r"^data.validation_path=.*other.txt' is too short"):
        open_with_validation("auto", request, str(other))
    with pytest.raises(UserError, match=r"^data.validation_path=.*none.txt"):
        open_with_validation("auto", request, str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"no text; choose one of its splits by eval\.split"):
        open_with_validation("synthetic", ask(), str(other))


def write_shards(folder: Path, text: str) -> Path:
    """Write the characters of a text in two shards, as `cuboid prepare` does."""
    folder.mkdir()
    tokenizer = Char.fit([text])
    (folder / "tokenizer.json").write_text(json.dumps(dump(tokenizer)))
    shards = []
    for name, ids in zip("ab", np.array_split(tokenizer.encode(text), 2), strict=True):
        np.save(folder / f"{name}.npy", ids.astype("<u2"))
        shards.append({"file": f"{name}.npy", "tokens": len(ids), "sha256": name})
    (folder / "tokens.json").write_text(json.dumps({"shards": shards}))
    return folder


def test_validation_on_other_shards_uses_the_ids_of_the_training_data(
    ask: Ask, tmp_path: Path
) -> None:
    train = write_shards(tmp_path / "train", TRAINED * 9)
    other = write_shards(tmp_path / "other", HELD_OUT * 9)
    request = ask(train, validation=0.0, seq_len=4)
    corpus = open_with_validation("tokens", request, str(other))
    for name, text in (("train", TRAINED * 9), ("validation", HELD_OUT * 9)):
        assert inputs_of(corpus, name) == text[: (len(text) - 1) // 4 * 4]
    assert vocabulary_size(corpus) == len(set(TRAINED))
    unknown = write_shards(tmp_path / "unknown", "0123456789")
    with pytest.raises(UserError, match=r"^data.validation_path=.* no ids for '0', '1'"):
        open_with_validation("tokens", request, str(unknown))


def test_validation_on_other_images_uses_the_codebook_of_the_training_images(
    ask: Ask, tmp_path: Path
) -> None:
    """The nearest colour of each pixel, by its definition; few colours, so that it is not exact."""
    pytest.importorskip("sklearn")
    images = {"train": drawn(20, 4, 4), "validation": drawn(7, 4, 4, seed=5)}
    for name, pixels in images.items():
        np.save(tmp_path / f"{name}.npy", pixels)
    request = ask(tmp_path / "train.npy", validation=0.0, seq_len=15, codes=8)
    corpus = open_with_validation("images", request, str(tmp_path / "validation.npy"))
    assert isinstance(corpus.tokenizer, Codebook)
    assert vocabulary_size(corpus) == 8
    colours = corpus.tokenizer.colours.astype(np.float64)
    for name, pixels in images.items():
        split = corpus.split(name)
        assert split.samples == len(pixels)
        ids, targets = split.batch(np.arange(len(pixels)))
        found = colours[np.concatenate([ids, targets[:, -1:]], axis=1)]
        given = pixels.reshape(len(pixels), 16, 3).astype(np.float64)
        squares = ((given[:, :, None] - colours) ** 2).sum(-1)
        assert np.allclose(((given - found) ** 2).sum(-1), squares.min(-1))


NAMED = Corpus(
    train=Windows(np.arange(13), 4),
    validation=Windows(np.arange(0), 4),
    other_splits={"test": Windows(np.arange(20, 41), 4), "empty": Windows(np.arange(0), 4)},
    tokenizer=Char("".join(map(chr, range(50, 100)))),
    description="books",
    fingerprint="f",
)


def test_validation_uses_a_named_split() -> None:
    batches = TrainBatches(NAMED, seed=1, batch_size=2, validation_split="test")
    validation = batches.validation
    assert (validation.samples, str(validation)) == (5, "all 5 samples of the split 'test'")
    assert validation.batch(0, 0)[0].tolist() == [[20, 21, 22, 23], [24, 25, 26, 27]]
    mapped, new = use_saved_ids(
        NAMED, {"type": "char", "characters": "".join(map(chr, range(99, 49, -1)))}
    )
    assert not new
    again = batches.with_corpus(mapped).validation
    assert again.batch(0, 0)[0].tolist() == [[29, 28, 27, 26], [25, 24, 23, 22]]
    assert str(TrainBatches(NAMED, seed=1, batch_size=2).validation) == "no samples"


def test_an_unknown_split_is_rejected_with_the_names_of_all() -> None:
    for name in ("tset", "empty"):
        with pytest.raises(
            UserError, match=f"books: there is no split '{name}'.*use one of train, test$"
        ):
            TrainBatches(NAMED, seed=1, batch_size=2, validation_split=name)
