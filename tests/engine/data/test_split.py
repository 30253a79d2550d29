"""Samples and splits, compared with slices of a list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.split import Windows, split_tokens
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
