"""Batches of all ranks, compared with the order of samples in one process."""

import pickle
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.config.schema import Settings
from engine.config.sections.data import DataSettings, EvalSettings
from engine.config.sections.model import ModelSettings
from engine.data.batches.consumed import Consumed
from engine.data.batches.loader import TrainBatches, load_batches, pad_samples
from engine.data.batches.sampler import Sampler
from engine.data.batches.windows import Windows
from engine.data.source import Corpus, SourceRequest
from engine.data.sources.synthetic import MarkovChain
from engine.errors import UserError

SEQ = 4


def _corpus(train: int = 23, validation: int = 11, seed: int = 3) -> Corpus:
    """Return a corpus of distinct tokens, in which the first token identifies a sample."""
    tokens = np.arange((train + validation) * SEQ + 2)
    return Corpus(
        train=Windows(tokens[: train * SEQ + 1], SEQ),
        validation=Windows(tokens[train * SEQ + 1 :], SEQ),
        tokenizer=None,
        description="",
        fingerprint="",
    )


LAYOUTS = [(12, 1, 1), (6, 2, 1), (6, 1, 2), (3, 2, 2), (1, 4, 3), (2, 3, 2)]


def _step(batches: TrainBatches, step: int, data: int, rounds: int) -> torch.Tensor:
    """Return all ids of a step in the order (round, data rank, sample)."""
    return torch.cat([batches.batch(step, a, r)[0] for a in range(rounds) for r in range(data)])


@pytest.mark.parametrize(("batch_size", "data", "rounds"), LAYOUTS)
def test_step_has_the_same_samples_in_every_layout(batch_size: int, data: int, rounds: int) -> None:
    corpus = _corpus()
    batches = TrainBatches(corpus, seed=5, batch_size=batch_size, data_size=data, rounds=rounds)
    assert batches.global_batch == 12
    order = Sampler(23, 5).order(0, 12 * 6)
    for step in (1, 2, 3, 6):  # step 2 straddles two epochs
        ids = _step(batches, step, data, rounds)
        expected = order[(step - 1) * 12 : step * 12] * SEQ
        assert ids[:, 0].tolist() == expected.tolist()
        assert batches.targets(step) == 12 * SEQ


def test_batch_is_int64_and_targets_are_the_next_tokens() -> None:
    batches = TrainBatches(_corpus(), seed=5, batch_size=3)
    ids, targets = batches.batch(1, 0, 0)
    assert ids.shape == targets.shape == (3, SEQ)
    assert ids.dtype == targets.dtype == torch.int64
    assert ids.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(targets, ids + 1)
    ids.fill_(0)  # writable, and no view of the tokens
    assert not torch.equal(batches.batch(1, 0, 0)[0], ids)


def test_every_sample_is_consumed_once_per_epoch() -> None:
    batches = TrainBatches(_corpus(), seed=5, batch_size=2, data_size=2)
    steps = batches.steps(3)
    assert steps == 18  # 69 samples, 4 a step
    ends = [batches.consumed(step).epochs for step in (5, 6, 17, 18)]
    assert ends == [20 / 23, 24 / 23, 68 / 23, 72 / 23]
    assert batches.consumed(18, epochs=3) == Consumed(
        step=18, samples=69, tokens=69 * SEQ, epochs=3.0
    )
    assert batches.per_step == Consumed(step=1, samples=4, tokens=4 * SEQ, epochs=4 / 23)
    seen = torch.cat([_step(batches, s, 2, 1) for s in range(1, steps + 1)])[:, 0]
    counts = Counter((seen[:69] // SEQ).tolist())
    assert counts == dict.fromkeys(range(23), 3)


@pytest.mark.parametrize(("batch_size", "data"), [(4, 1), (1, 2), (5, 3), (40, 1)])
def test_resume_with_another_global_batch_continues_at_the_next_sample(
    batch_size: int, data: int
) -> None:
    """No sample is skipped or repeated after 5 steps of 4 samples, in 3 epochs of 23."""
    before = TrainBatches(_corpus(), seed=5, batch_size=4)
    done = before.consumed(5)
    assert done == Consumed(step=5, samples=20, tokens=20 * SEQ, epochs=20 / 23)
    after = TrainBatches(_corpus(), seed=5, batch_size=batch_size, data_size=data).resumed_at(done)
    steps = after.steps(3)
    assert steps is not None
    assert steps == 5 + -(-49 // (batch_size * data))
    seen = [_step(before, step, 1, 1) for step in range(1, 6)]
    seen += [_step(after, step, data, 1) for step in range(6, steps + 1)]
    order = torch.cat(seen)[:, 0] // SEQ
    assert order.tolist() == Sampler(23, 5).order(0, len(order)).tolist()
    read = len(order)
    assert after.consumed(steps) == Consumed(
        step=steps, samples=read, tokens=read * SEQ, epochs=read / 23
    )
    assert after.targets(6) == batch_size * data * SEQ


def test_epochs_already_consumed_leave_no_steps() -> None:
    batches = TrainBatches(_corpus(), seed=5, batch_size=4)
    assert batches.resumed_at(batches.consumed(9)).steps(1) == 9


def test_epochs_accumulate_over_resumes_that_change_everything() -> None:
    """The resumes change the global batch, the data, the sequence length, and the data back."""
    whole = TrainBatches(_corpus(), seed=5, batch_size=4)
    first = whole.consumed(8)  # 32 of 23 samples
    larger = TrainBatches(_corpus(), seed=5, batch_size=6).resumed_at(first)
    second = larger.consumed(10)
    assert second == Consumed(step=10, samples=44, tokens=44 * SEQ, epochs=44 / 23)
    data = TrainBatches(_corpus(train=230), seed=5, batch_size=10).resumed_at(second)
    third = data.consumed(13)
    assert third == Consumed(step=13, samples=74, tokens=74 * SEQ, epochs=(440 + 30) / 230)
    assert data.steps(3) == 10 + 25  # 250 samples are left of three epochs
    order = Sampler(230, 5).order(440, 10) * SEQ
    assert data.batch(11, 0, 0)[0][:, 0].tolist() == order.tolist()
    tokens = np.arange(23 * 2 * SEQ + 1)
    windows = Windows(tokens, 2 * SEQ)
    corpus = replace(_corpus(), train=windows, validation=windows)
    longer = TrainBatches(corpus, seed=5, batch_size=1).resumed_at(third)
    fourth = longer.consumed(15)
    assert (fourth.samples, fourth.tokens) == (76, 74 * SEQ + 2 * 2 * SEQ)
    assert fourth.epochs == (47 + 2) / 23
    back = TrainBatches(_corpus(), seed=5, batch_size=4).resumed_at(fourth)
    assert back.consumed(15) == fourth
    assert back.consumed(99, epochs=3).epochs == 3.0, "the end of the run may be within a step"


def test_endless_data_has_no_epochs() -> None:
    synthetic = replace(_corpus(), train=_Endless())
    batches = TrainBatches(synthetic, seed=5, batch_size=4)
    assert batches.consumed(3) == Consumed(step=3, samples=12, tokens=12 * SEQ)
    text = TrainBatches(_corpus(), seed=5, batch_size=4).resumed_at(batches.consumed(3))
    assert text.consumed(4) == Consumed(step=4, samples=16, tokens=16 * SEQ, epochs=4 / 23)
    again = TrainBatches(synthetic, seed=5, batch_size=4).resumed_at(text.consumed(4))
    assert again.consumed(5) == Consumed(step=5, samples=20, tokens=20 * SEQ, epochs=4 / 23)
    assert again.batch(5, 0, 0)[0][:, 0].tolist() == [16, 17, 18, 19]
    assert batches.per_step.epochs == 0
    assert batches.epoch_ended_by(1) is None


def test_global_batch_larger_than_an_epoch_repeats_samples() -> None:
    batches = TrainBatches(_corpus(train=2), seed=5, batch_size=7)
    ids, _ = batches.batch(1, 0, 0)
    assert sorted(Counter(ids[:, 0].tolist()).values()) in ([3, 4],)
    assert batches.steps(1) == 1


@pytest.mark.parametrize(("batch_size", "data", "rounds"), LAYOUTS)
@pytest.mark.parametrize(("limit", "count"), [(None, 29), (2, 24), (1, 12), (0, 0), (9, 29)])
def test_validation_evaluates_each_sample_once(
    batch_size: int, data: int, rounds: int, limit: int | None, count: int
) -> None:
    batches = TrainBatches(
        _corpus(validation=29),
        seed=5,
        batch_size=batch_size,
        data_size=data,
        rounds=rounds,
        validation_samples=None if limit is None else limit * 12,
    )
    first: list[int] = []
    targets = 0
    for i in range(batches.validation.batches):
        for rank in range(data):
            ids, batch_targets = batches.validation.batch(i, rank)
            assert ids.shape == batch_targets.shape == (batch_size, SEQ)
            assert ids.dtype == batch_targets.dtype == torch.int64
            real = (batch_targets != -100).all(dim=1)
            assert ((batch_targets == -100).all(dim=1) | real).all()
            assert not ids[~real].any()
            first += ids[real][:, 0].tolist()
            targets += int((batch_targets != -100).sum())
    start = 23 * SEQ + 1
    assert first == [start + SEQ * i for i in range(count)]
    assert targets == batches.validation.targets == count * SEQ


def _numpy_state() -> bytes:
    return pickle.dumps(np.random.get_state(legacy=False))


class _Masked:
    """Samples whose first i % 3 targets are ignored."""

    samples: int | None = 10
    seq_len = SEQ

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids = np.repeat(indices[:, None], SEQ, axis=1)
        keep = np.arange(SEQ) >= (indices % 3)[:, None]
        return ids, np.where(keep, ids, -100)

    def count_targets(self, indices: NDArray[np.int64]) -> int:
        return int((SEQ - indices % 3).sum())


class _Endless(_Masked):
    samples = None


def test_targets_are_counted_over_the_global_batch() -> None:
    corpus = Corpus(
        train=_Masked(), validation=_Masked(), tokenizer=None, description="", fingerprint=""
    )
    batches = TrainBatches(corpus, seed=5, batch_size=2, data_size=2, rounds=3)
    for step in (1, 2, 5):
        parts = [batches.batch(step, a, r)[1] for a in range(3) for r in range(2)]
        assert batches.targets(step) == int((torch.cat(parts) != -100).sum())
    assert batches.validation.targets == 10 * SEQ - 9


def test_endless_samples_are_read_in_order() -> None:
    request = SourceRequest(
        path=None, tokenizer="char", validation=0.1, seq_len=SEQ, vocab_size=9, seed=1,
        cache=Path("nowhere"),
    )  # fmt: skip
    corpus = Corpus(
        train=MarkovChain(request, 1, samples=None),
        validation=MarkovChain(request, 2, samples=5),
        tokenizer=None,
        description="",
        fingerprint="",
    )
    batches = TrainBatches(corpus, seed=5, batch_size=2, data_size=2, rounds=2)
    assert batches.steps(3) is None
    ids = torch.cat([_step(batches, s, 2, 2) for s in (1, 2)])
    assert torch.equal(ids, torch.from_numpy(corpus.train.batch(np.arange(16))[0]))
    assert batches.targets(1) == 8 * SEQ


def test_loader_uses_no_global_generator() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), _numpy_state(), torch.get_rng_state()
    batches = TrainBatches(_corpus(), seed=5, batch_size=3)
    first = batches.batch(2, 0, 0)[0]
    batches.targets(2), batches.validation.batch(1, 0)
    assert random.getstate() == before[0]
    assert _numpy_state() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(TrainBatches(_corpus(), seed=5, batch_size=3).batch(2, 0, 0)[0], first)


@pytest.mark.parametrize(
    ("samples", "multiple", "at_least", "padded"),
    [(5, 4, 0, 8), (8, 4, 0, 8), (0, 4, 0, 0), (0, 4, 1, 4), (1, 1, 0, 1), (3, 4, 5, 8)],
)
def test_padded_samples_have_only_ignored_targets(
    samples: int, multiple: int, at_least: int, padded: int
) -> None:
    ids = torch.arange(1, samples * SEQ + 1).reshape(samples, SEQ)
    got, targets = pad_samples(ids, ids + 1, multiple, at_least=at_least)
    assert got.shape == targets.shape == (padded, SEQ)
    assert torch.equal(got[:samples], ids)
    assert torch.equal(targets[:samples], ids + 1)
    assert not got[samples:].any()
    assert (targets[samples:] == -100).all()


def _settings(folder: Path, **data: Any) -> Settings:
    sizes: dict[str, Any] = {
        "n_layer": 1,
        "n_head": 1,
        "n_embd": 8,
        "vocab_size": 256,
        "block_size": SEQ,
    }
    given: dict[str, Any] = {
        "seq_len": SEQ,
        "batch_size": 3,
        "gradient_accumulation": 2,
        "seed": 9,
    }
    return Settings(
        name="it",
        source="it.py",
        model=ModelSettings(**sizes),
        data=DataSettings(path=str(folder / "it.txt"), tokenizer="char", **data),
        eval=EvalSettings(batches=1),
        **given,
    )


def test_batches_follow_the_settings(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_text("".join(map(chr, range(32, 132))) * 4)
    lines: list[str] = []
    settings = _settings(tmp_path, validation=0.25)
    batches = load_batches(settings, data_size=2, cache=tmp_path / "default", notify=lines.append)
    assert len(lines) == 1
    assert list((tmp_path / "default").glob("*.tokens"))
    assert batches.global_batch == 12
    assert batches.corpus.train.samples == (300 - 1) // SEQ
    assert batches.validation.samples == 12
    order = Sampler((300 - 1) // SEQ, 9).order(12, 12)
    got = _step(batches, 2, 2, 2)[:, 0]
    assert got.tolist() == [(int(i) * SEQ) % 100 for i in order]


def test_data_cache_overrides_the_default_cache(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_text("abcd" * 100)
    settings = _settings(tmp_path, cache=str(tmp_path / "mine"))
    load_batches(settings, data_size=1, cache=tmp_path / "default")
    assert list((tmp_path / "mine").glob("*.tokens"))
    assert not (tmp_path / "default").exists()


def test_an_epoch_ends_in_the_step_that_reads_its_last_sample() -> None:
    """Also after a resume, and if a step reads several epochs."""
    batches = TrainBatches(_corpus(train=10), seed=5, batch_size=4)
    assert [batches.epoch_ended_by(step) for step in range(1, 6)] == [None, None, 1, None, 2]
    rest = batches.resumed_at(batches.consumed(2))
    assert [rest.epoch_ended_by(step) for step in range(3, 6)] == [1, None, 2]
    large = TrainBatches(_corpus(train=10), seed=5, batch_size=25)
    assert [large.epoch_ended_by(step) for step in (1, 2)] == [2, 5]


def test_intervals_in_epochs_end_in_the_step_that_reads_their_last_sample() -> None:
    batches = TrainBatches(_corpus(train=30), seed=5, batch_size=1)
    steps = [step for step in range(1, 61) if batches.ends_interval(step, 0.1)]
    assert steps == list(range(3, 61, 3))  # 3 x 0.1 > 0.3 in floating point
    large = TrainBatches(_corpus(train=30), seed=5, batch_size=7)
    assert [step for step in range(1, 14) if large.ends_interval(step, 1.5)] == [7, 13]
    resumed = batches.resumed_at(batches.consumed(10))
    assert [step for step in range(11, 25) if resumed.ends_interval(step, 0.5)] == [15]
    endless = replace(_corpus(), train=_Endless(), description="it")
    with pytest.raises(UserError, match="it: the data is endless, so it has no epochs"):
        TrainBatches(endless, seed=5, batch_size=4).ends_interval(1, 1.0)
