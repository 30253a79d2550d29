"""Lanes, compared with the samples that Languini's reader draws from six short books."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.data import source
from engine.data.batches.lanes import LaneSplit, assign
from engine.data.batches.loader import TrainBatches, load_batches
from engine.data.source import Corpus
from engine.data.token_files.languini_lists import Book
from engine.data.token_files.token_shards import open_shard
from engine.data.tokenizer import dump
from engine.data.tokenizers.char import Char
from engine.data.vocabulary.size import vocabulary_size
from engine.errors import UserError
from engine.plan import make_plan
from models.parallel.targets import IGNORED
from tests.engine.data.support import Ask
from tests.support.books import FIXTURE, fixture_books, write_books

SEPARATOR = 2
VOCABULARY = 1000


def lane_split(root: Path, lanes: int, seq_len: int, *, repeats: bool) -> LaneSplit:
    """Return the fixture in lanes."""
    folder = write_books(root, {"train": fixture_books()})
    books = [
        Book(shard=open_shard(folder / f"files/train-{k}.epub.npy"), listed=tokens)
        for k, tokens in enumerate(FIXTURE, start=1)
    ]
    return LaneSplit.of(
        books,
        lanes=lanes,
        seq_len=seq_len,
        separator=SEPARATOR,
        vocabulary=VOCABULARY,
        repeats=repeats,
    )


def steps_of(split: LaneSplit, steps: int) -> list[tuple[Any, Any]]:
    """Return (ids, targets) of the first steps, each [lanes, seq_len]."""
    lanes = len(split.lanes)
    parts = [split.batch(np.arange(step * lanes, (step + 1) * lanes)) for step in range(steps)]
    return [(ids.tolist(), targets.tolist()) for ids, targets in parts]


def test_a_book_goes_to_the_first_lane_with_the_fewest_tokens() -> None:
    assert assign(FIXTURE, 2) == [[0, 3, 4], [1, 2, 5]]
    assert assign(FIXTURE, 4) == [[0], [1, 5], [2], [3, 4]]
    assert assign([3, 3, 3], 3) == [[0], [1], [2]]


def test_two_lanes_for_evaluation_are_read_once_and_padded(tmp_path: Path) -> None:
    split = lane_split(tmp_path, 2, 4, repeats=False)
    assert split.samples == 5 * 2
    (x1, _), (x2, _), (x3, _), (x4, _), (x5, y5) = steps_of(split, 5)
    assert x1 == [[100, 101, 102, 103], [200, 201, 202, 203]]
    assert x2 == [[104, 105, 106, 2], [204, 2, 300, 301]]
    assert x3 == [[400, 401, 402, 403], [302, 303, 304, 305]]
    assert x4 == [[2, 500, 501, 502], [306, 307, 308, 2]]
    assert x5 == [[503, 504, 505, 2], [600, 601, 602, 2]]
    assert y5 == [[504, 505, 2, IGNORED], [601, 602, 2, IGNORED]]
    for x, y in steps_of(split, 4):  # a target is the next input, also across steps
        assert [row[1:] for row in x] == [row[:-1] for row in y]
    assert split.count_targets(np.arange(10)) == 38
    assert split.count_targets(np.array([8, 9, 1])) == 3 + 3 + 4


def test_one_lane_has_all_books_in_order(tmp_path: Path) -> None:
    split = lane_split(tmp_path, 1, 8, repeats=False)
    assert split.samples == 5
    assert split.count_targets(np.arange(5)) == 39
    ids, targets = split.batch(np.arange(5))
    books = fixture_books()
    stream = [token for book in books for token in [*book, SEPARATOR]]
    assert ids.ravel().tolist() == stream
    assert targets.ravel().tolist() == [*stream[1:], IGNORED]


@pytest.mark.parametrize(("last_n", "steps", "scored"), [(4, 9, 35), (2, 17, 33), (1, 33, 32)])
def test_sliding_samples_evaluate_their_last_targets(
    tmp_path: Path, last_n: int, steps: int, scored: int
) -> None:
    split = lane_split(tmp_path, 1, 8, repeats=False).sliding(last_n)
    assert split.samples == steps
    assert split.count_targets(np.arange(steps)) == scored
    ids, targets = split.batch(np.arange(steps))
    stream = [token for book in fixture_books() for token in [*book, SEPARATOR]]
    assert targets[targets != IGNORED].tolist() == stream[8 - last_n + 1 :]
    assert ids[2].tolist() == stream[2 * last_n : 2 * last_n + 8]


def test_ranks_and_rounds_read_their_lanes_which_repeat(tmp_path: Path) -> None:
    """Four lanes on rank 1 of 2, with 2 rounds of one sample."""
    train = lane_split(tmp_path, 4, 4, repeats=True)
    nothing = LaneSplit([], seq_len=4, repeats=False)
    corpus = Corpus(
        train=train, validation=nothing, tokenizer=None, description="", fingerprint="lanes"
    )
    batches = TrainBatches(corpus, seed=0, batch_size=1, data_size=2, rounds=2)

    def read(step: int) -> list[Any]:
        return [batches.batch(step, accumulation, 1)[0].tolist() for accumulation in range(2)]

    assert read(1) == [[[200, 201, 202, 203]], [[400, 401, 402, 403]]]
    assert read(2) == [[[204, 2, 600, 601]], [[2, 500, 501, 502]]]
    assert read(3) == [[[602, 2, 200, 201]], [[503, 504, 505, 2]]]
    assert batches.targets(3) == 16
    assert train.samples is None


@pytest.mark.parametrize("data", [1, 2, 4])
def test_steps_of_a_run_have_the_same_lanes_on_any_number_of_ranks(
    tmp_path: Path, data: int
) -> None:
    """By their numbers of tokens the books go to lane 1, 2, 3, 4, 4, 2, each followed by 50256."""
    folder = write_books(tmp_path, {"train": fixture_books()})
    (tmp_path / "lanes.py").write_text(
        f"GLOBAL_BATCH_SIZE = 4\nBATCH_SIZE = 1\nSEQ_LEN = 4\nMAX_STEPS = 2\n"
        f"data = dict(type='lanes', path={str(folder)!r}, tokenizer='gpt2', validation=0.0)\n"
        "model = dict(n_layer=1, n_head=1, n_embd=8)\n"
    )
    settings = make_plan(tmp_path / "lanes.py", gpus=data, environ={}).settings
    batches = load_batches(settings, data_size=data, cache=tmp_path)
    rounds = settings.gradient_accumulation
    assert rounds * data == 4
    read = [
        batches.batch(2, accumulation, rank)[0].tolist()
        for accumulation in range(rounds)
        for rank in range(data)
    ]
    assert [ids for (ids,) in read] == [
        [104, 105, 106, 50256],
        [204, 50256, 600, 601],
        [304, 305, 306, 307],
        [50256, 500, 501, 502],
    ]


@pytest.mark.parametrize(("lanes", "seq_len"), [(1, 3), (2, 4), (3, 5), (4, 16), (8, 2)])
def test_every_token_of_a_lane_but_its_first_is_a_target_once(
    tmp_path: Path, lanes: int, seq_len: int
) -> None:
    split = lane_split(tmp_path, lanes, seq_len, repeats=False)
    _, targets = split.batch(np.arange(split.samples or 0))
    scored = targets[targets != IGNORED]
    books = fixture_books()
    expected: list[int] = []
    for books_of_lane in assign(FIXTURE, lanes):
        stream = [token for i in books_of_lane for token in [*books[i], SEPARATOR]]
        expected += stream[1:]
    assert sorted(scored.tolist()) == sorted(expected)
    assert split.count_targets(np.arange(split.samples or 0)) == len(expected)


def open_lanes(ask: Ask, folder: Path, **changes: Any) -> Corpus:
    return source.open_corpus(
        "lanes", ask(folder, tokenizer="gpt2", **{"seq_len": 4, "global_batch": 2, **changes})
    )


def test_source_reads_the_splits_of_the_file_lists(tmp_path: Path, ask: Ask) -> None:
    names = {"train": fixture_books(), "test_iid": [[5, 6, 7]], "test_statistics": [[8, 9]]}
    folder = write_books(tmp_path, {**names, "mine": [[1, 2, 3, 4, 5, 6]]})
    corpus = open_lanes(ask, folder, validation=0.0)
    assert set(corpus.splits) == {"train", "test", "stats", "mine"}
    ids, targets = corpus.split("test").batch(np.arange(1))
    assert (ids.tolist(), targets.tolist()) == ([[5, 6, 7, 50256]], [[6, 7, 50256, IGNORED]])
    assert corpus.train.batch(np.arange(2))[0].tolist() == [
        [100, 101, 102, 103],
        [200, 201, 202, 203],
    ]


def test_last_books_are_held_out_unless_a_list_has_the_validation(tmp_path: Path, ask: Ask) -> None:
    folder = write_books(tmp_path / "a", {"train": fixture_books()})
    corpus = open_lanes(ask, folder, validation=0.1)  # 3 of 34 tokens are too few
    _, targets = corpus.validation.batch(np.arange(corpus.validation.samples or 0))
    held_out = targets[targets != IGNORED]
    assert set(held_out.tolist()) == {*range(501, 506), 50256, *range(600, 603)}
    trained, _ = corpus.train.batch(np.arange(2 * 34))  # each of two lanes more than once
    assert set(trained.ravel().tolist()) == {50256}.union(*fixture_books()[:4])
    folder = write_books(tmp_path / "b", {"train": fixture_books(), "validation": [[7, 8, 9]]})
    listed = open_lanes(ask, folder, validation=0.1)
    assert listed.validation.batch(np.arange(1))[0].tolist() == [[7, 8, 9, 50256]]
    assert open_lanes(ask, folder, validation=0.0).validation.samples == 0


def test_listed_lengths_decide_the_lanes_and_files_the_tokens(tmp_path: Path, ask: Ask) -> None:
    folder = write_books(tmp_path, {"train": fixture_books()})
    rows = np.load(tmp_path / "file_list_train.npy")
    rows[:, 1] = ["1", "9", "1", "1", "1", "1"]
    np.save(tmp_path / "file_list_train.npy", rows)
    corpus = open_lanes(ask, folder, validation=0.0)
    ids = corpus.train.batch(np.arange(2, 6))[0]
    assert ids[::2].tolist() == [[104, 105, 106, 50256], [300, 301, 302, 303]]


def test_fingerprint_depends_on_names_and_sizes_and_reads_no_tokens(
    tmp_path: Path, ask: Ask
) -> None:
    folder = write_books(tmp_path, {"train": fixture_books(), "test_iid": [[5, 6, 7]]})
    first = open_lanes(ask, folder)
    book = folder / "files/train-3.epub.npy"
    content = book.read_bytes()
    book.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert open_lanes(ask, folder).fingerprint == first.fingerprint
    assert open_lanes(ask, folder, global_batch=3).fingerprint == first.fingerprint
    assert first.ordered_by_batch
    changed = {open_lanes(ask, folder, seq_len=5).fingerprint}
    changed.add(open_lanes(ask, folder, eval_lanes=2).fingerprint)
    np.save(book, np.arange(8, dtype=np.uint16))
    changed.add(open_lanes(ask, folder).fingerprint)
    rows = np.load(tmp_path / "file_list_train.npy")
    np.save(tmp_path / "file_list_train.npy", rows[::-1])
    changed.add(open_lanes(ask, folder).fingerprint)
    assert len(changed - {first.fingerprint}) == 4


def test_vocabulary_size_is_that_of_the_tokenizer_beside_the_shards(tmp_path: Path) -> None:
    folder = write_books(tmp_path, {"train": [[1, 2]]})
    (folder / "tokenizer.json").write_text(json.dumps(dump(Char("\x03ab"))))
    (tmp_path / "lanes.py").write_text(
        f"BATCH_SIZE = 1\nSEQ_LEN = 4\nMAX_STEPS = 1\n"
        f"data = dict(type='lanes', path={str(folder)!r}, tokenizer='char')\n"
        "model = dict(n_layer=1, n_head=1, n_embd=8, vocab_size='data')\n"
    )
    plan = make_plan(tmp_path / "lanes.py", gpus=1, environ={})
    assert vocabulary_size(plan.settings, tmp_path) == 3


def test_unusable_folders_of_books_are_rejected_with_the_reason(tmp_path: Path, ask: Ask) -> None:
    folder = write_books(tmp_path, {"train": fixture_books()})

    def message(path: Path = folder, **changes: Any) -> str:
        with pytest.raises(UserError) as error:
            open_lanes(ask, path, **changes)
        return str(error.value).replace(str(tmp_path), "DATA")

    assert message(tmp_path / "none") == (
        "data.path='DATA/none' is not one folder that exists, which data.type='lanes' reads; set "
        "it to a folder of shards, which is in the folder of the file lists"
    )
    assert message(folder / "files") == (
        "data.path='DATA/vocabulary/files': DATA/vocabulary/file_list_train.npy is missing; "
        "`cuboid prepare` writes it"
    )
    assert message(tmp_path) == (
        "data.path='DATA' is the folder of the file lists; set data.path to a folder of shards in "
        "it: 'DATA/vocabulary'"
    )
    assert "has 4 books to train on, fewer than the 6 samples of a step" in message(global_batch=6)
    book = folder / "files/train-2.epub.npy"
    content = book.read_bytes()
    book.write_bytes(content[:-1])
    assert message() == (
        "DATA/vocabulary/files/train-2.epub.npy is incomplete: it has 137 of 138 bytes; "
        "copy it again"
    )
    book.write_bytes(b"text")
    assert "train-2.epub.npy is not a NumPy file" in message()
    np.save(book, np.zeros((2, 2)))
    assert "must have one dimension of uint16 or uint32" in message()
    np.save(book, np.array([50257], np.uint16))
    corpus = open_lanes(ask, folder)
    with pytest.raises(UserError, match=r"token id 50,257 is not in the vocabulary of 50,257"):
        corpus.train.batch(np.arange(2))
    book.unlink()
    assert "train-2.epub.npy cannot be read: No such file" in message()
    np.save(tmp_path / "file_list_train.npy", np.arange(3))
    assert "must be text of shape [N, 2]" in message()
