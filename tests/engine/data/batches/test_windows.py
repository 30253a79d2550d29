"""Samples and splits, compared with slices of a list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.batches.train_validation_split import split_tokens
from engine.data.batches.windows import Windows
from engine.errors import UserError


@given(st.integers(0, 60), st.integers(1, 9))
def test_samples_are_slices_of_the_tokens(count: int, length: int) -> None:
    tokens = np.arange(count, dtype=np.uint16) + 65000
    plain = tokens.astype(int).tolist()
    slices = [
        plain[i : i + length + 1]
        for i in range(0, count, length)
        if len(plain[i : i + length + 1]) == length + 1
    ]
    windows = Windows(tokens, length)
    assert windows.samples == len(slices)
    ids, targets = windows.batch(np.arange(len(slices))[::-1])
    assert ids.dtype == targets.dtype == np.int64
    assert ids.tolist() == [s[:-1] for s in slices[::-1]]
    assert targets.tolist() == [s[1:] for s in slices[::-1]]
    assert windows.count_targets(np.arange(len(slices))) == targets.size


@given(st.integers(0, 400), st.floats(0, 0.95), st.integers(1, 12))
def test_tail_of_the_tokens_is_the_validation_split(count: int, share: float, length: int) -> None:
    tokens = np.arange(count)
    held_out = int(count * share)
    fits = count - held_out > length and (share == 0 or held_out > length)
    if not fits:
        with pytest.raises(UserError, match="too short"):
            split_tokens(tokens, validation=share, seq_len=length, name="it")
        return
    train, validation = split_tokens(tokens, validation=share, seq_len=length, name="it")
    assert train.tokens[:].tolist() == list(range(count - held_out))
    assert validation.tokens[:].tolist() == list(range(count - held_out, count))
    assert train.samples >= 1
    assert validation.samples >= (share > 0)


def test_too_few_tokens_are_rejected_with_the_number_needed() -> None:
    with pytest.raises(
        UserError,
        match=r"^it is too short: SEQ_LEN=64 needs 65 tokens in each part, but there are 540 to "
        r"train on and 60 to validate \(data.validation=0.1\); use a smaller SEQ_LEN or at least "
        r"650 tokens$",
    ):
        split_tokens(np.zeros(600), validation=0.1, seq_len=64, name="it")
    split_tokens(np.zeros(650), validation=0.1, seq_len=64, name="it")
    with pytest.raises(UserError, match=r"at least 65 tokens$"):
        split_tokens(np.zeros(64), validation=0.0, seq_len=64, name="it")
    split_tokens(np.zeros(65), validation=0.0, seq_len=64, name="it")


def test_no_sample_wraps_around() -> None:
    windows = Windows(np.arange(10), 3)
    for wrong in (-1, 3):
        with pytest.raises(AssertionError):
            windows.batch(np.array([wrong]))


def row_of_books() -> list[int]:
    """Return books of several lengths in one row: book k has ids 100 k, 100 k + 1 ..., then 2."""
    lengths = (7, 5, 9, 4, 6, 3)
    return [
        token
        for book, length in enumerate(lengths, start=1)
        for token in (*range(100 * book, 100 * book + length), 2)
    ]


@pytest.mark.parametrize(("stride", "scored"), [(8, 39), (4, 35), (2, 33), (1, 32)])
def test_sliding_windows_score_each_target_once_with_the_context_before_it(
    stride: int, scored: int
) -> None:
    row = np.array(row_of_books())
    windows = Windows(row, 8).sliding(stride)
    ids, targets = windows.batch(np.arange(windows.samples))
    found = [
        (list(sample[: place + 1]), int(target))
        for sample, answers in zip(ids.tolist(), targets, strict=True)
        for place, target in enumerate(answers)
        if place >= 8 - stride and target != -100
    ]
    assert len(found) == scored == len(row) - 1 - (8 - stride)
    for end, (context, target) in enumerate(found, start=len(row) - scored):
        assert target == row[end]
        assert context == row[end - len(context) : end].tolist()
        assert len(context) > 8 - stride
    assert windows.count_targets(np.arange(windows.samples)) == int((targets != -100).sum())
