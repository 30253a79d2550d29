"""The Markov chain: deterministic, endless, and with the documented entropy."""

import math
from collections import Counter

import numpy as np
import pytest

from engine.data.source import Split
from engine.data.sources.synthetic import open_corpus
from tests.engine.data.support import Ask


def test_sample_is_a_function_of_seed_and_number(ask: Ask) -> None:
    corpus, again = open_corpus(ask()), open_corpus(ask())
    ids, targets = corpus.train.batch(np.arange(6))
    assert ids.shape == targets.shape == (6, 8)
    assert ids.dtype == targets.dtype == np.int64
    assert np.array_equal(ids[:, 1:], targets[:, :-1])
    alone = [again.train.batch(np.array([i]))[0][0] for i in (5, 0, 3)]
    assert np.array_equal(ids[[5, 0, 3]], alone)
    assert len({tuple(row) for row in ids}) == 6


def test_seeds_and_splits_have_different_samples(ask: Ask) -> None:
    def rows(split: Split) -> list[list[int]]:
        rows: list[list[int]] = split.batch(np.arange(4))[0].tolist()
        return rows

    corpus = open_corpus(ask())
    assert rows(corpus.train) != rows(corpus.validation)
    assert rows(corpus.train) != rows(open_corpus(ask(seed=8)).train)


def test_training_is_endless_and_validation_is_not(ask: Ask) -> None:
    corpus = open_corpus(ask())
    assert corpus.train.samples is None
    assert corpus.train.batch(np.array([10**12]))[0].shape == (1, 8)
    assert corpus.validation.samples == 1024
    assert open_corpus(ask(validation=0.0)).validation.samples == 0
    assert corpus.tokenizer is None


@pytest.mark.parametrize(("vocab_size", "states"), [(1, 1), (2, 2), (100, 100), (50304, 256)])
def test_ids_spread_over_the_vocabulary(ask: Ask, vocab_size: int, states: int) -> None:
    split = open_corpus(ask(vocab_size=vocab_size, seq_len=256)).train
    ids = split.batch(np.arange(40))[0]
    assert ids.min() >= 0
    assert ids.max() < vocab_size
    assert len(np.unique(ids)) == states
    assert ids.max() >= 0.9 * (vocab_size - 1)


def test_entropy_is_that_of_the_documentation(ask: Ask) -> None:
    """The entropy by counting is ln 256 nats per token, 7/4 ln 2 given the previous token."""
    ids, targets = open_corpus(ask(seq_len=512)).train.batch(np.arange(400))
    single = Counter(targets.ravel().tolist())
    pairs = Counter(zip(ids.ravel().tolist(), targets.ravel().tolist(), strict=True))
    before = Counter(ids.ravel().tolist())
    n = targets.size
    entropy = -sum(c / n * math.log(c / n) for c in single.values())
    given = -sum(c / n * math.log(c / before[a]) for (a, _), c in pairs.items())
    assert entropy == pytest.approx(math.log(256), abs=0.01)
    assert given == pytest.approx(7 / 4 * math.log(2), abs=0.01)


def test_samples_of_a_seed_never_change(ask: Ask) -> None:
    """The expected ids are constants: a resume with another NumPy must read the same samples."""
    ids, _ = open_corpus(ask(vocab_size=50257)).train.batch(np.array([0, 12345]))
    assert ids.tolist() == GOLDEN


def test_data_path_is_ignored(ask: Ask) -> None:
    assert open_corpus(ask("x.txt")).fingerprint == open_corpus(ask()).fingerprint


GOLDEN = [
    [42428, 7302, 42004, 43466, 35135, 45380, 45987, 5374],
    [26298, 30881, 18682, 11167, 20028, 24583, 34084, 38906],
]
