"""The order of samples: permutations in random access, which never change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.batches.sampler import Sampler, raw_bits


@given(st.integers(1, 40), st.integers(0, 2**64), st.integers(0, 5))
def test_epoch_is_a_permutation_of_all_samples(samples: int, seed: int, epoch: int) -> None:
    order = Sampler(samples, seed).order(epoch * samples, samples)
    assert sorted(order.tolist()) == list(range(samples))


@given(st.integers(1, 30), st.integers(0, 200), st.integers(0, 100))
def test_any_part_of_the_order_is_a_slice_of_the_whole(
    samples: int, start: int, count: int
) -> None:
    whole = Sampler(samples, 3).order(0, 300)
    part = Sampler(samples, 3).order(start, count)  # a new one: nothing is carried over
    assert part.tolist() == whole[start : start + count].tolist()


def test_epochs_and_seeds_have_different_orders() -> None:
    sampler = Sampler(100, 1)
    first, second = sampler.order(0, 100).tolist(), sampler.order(100, 100).tolist()
    assert first != second
    assert first != Sampler(100, 2).order(0, 100).tolist()
    assert first != list(range(100))


def test_every_position_is_equally_likely() -> None:
    """The mean position of each sample over many epochs is within six standard errors."""
    places = np.array([np.argsort(Sampler(10, 5).order(e * 10, 10)) for e in range(3000)])
    error = np.sqrt((10**2 - 1) / 12 / len(places))
    assert np.abs(places.mean(axis=0) - 4.5).max() < 6 * error


def test_endless_samples_keep_their_order() -> None:
    assert Sampler(None, 1).order(10**12, 3).tolist() == [10**12, 10**12 + 1, 10**12 + 2]


def test_sampler_uses_no_global_generator() -> None:
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    first = Sampler(50, 4).order(0, 50)
    assert np.random.random() == expected
    assert Sampler(50, 4).order(0, 50).tolist() == first.tolist()


def test_streams_of_random_bits_differ() -> None:
    draws = [tuple(raw_bits(2, *key)) for key in ((1, 1), (1, 2), (2, 1), (1, 1, 0), (1, 0, 1))]
    assert len(set(draws)) == 5


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(0, [2, 1, 0, 7, 4, 7, 0, 1]), (42, [0, 5, 2, 1, 7, 5, 0, 1])],
)
def test_order_of_a_seed_never_changes(seed: int, expected: list[int]) -> None:
    """The order is written here: a resume with another NumPy must consume the same samples."""
    assert Sampler(8, seed).order(4, 8).tolist() == expected
