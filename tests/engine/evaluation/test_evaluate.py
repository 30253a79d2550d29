"""Evaluation gives the same result in every layout: that of plain torch with full logits."""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine.data.tokenizers.char import Char
from engine.data.tokenizers.gpt2 import GPT2
from engine.evaluation.evaluate import evaluate, mask_all_but_last
from engine.evaluation.request import EvaluationRequest
from engine.evaluation.result import Evaluation
from engine.generation.text import load_model
from engine.inout.open_model import open_saved_model
from engine.runs.folder import RunFolder
from engine.runs.lookup import resolve_weights
from launch import cli
from tests.support.evaluation import failed_evaluation, world_of_run
from tests.support.jobs import TINY, Job, run
from tests.support.worlds import free_port, run_world

SEQ = 8
TEXT = "Zwölf Boxkämpfer jagen Eva quer über den Sylter Deich; " * 15
OVERRIDES = (
    "data.type=text",
    "data.tokenizer=char",
    "data.path=corpus.txt",
    "model.n_layer=4",
    "model.vocab_size=45",  # odd, and more than the text has characters
    "precision=float64",
    "MAX_STEPS=40",
    "eval.every=20",
    "checkpoint.every=20",
    "log.dir=run",
)
# By ranks. The 10 samples of the validation split do not fill the last batch of some.
LAYOUTS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {"serial": (), "other batches": ("BATCH_SIZE=6", "NUM_MICRO_BATCHES=3", "loss_chunk=5")},
    4: {
        "2d": ("TENSOR_PARALLEL=4", "MODE=2d", "BATCH_SIZE=3"),
        "2.5d": ("TENSOR_PARALLEL=2", "MODE=2.5d", "DEPTH=2", "BATCH_SIZE=3"),
        "sequence": ("TENSOR_PARALLEL=4", "MODE=sequence", "BATCH_SIZE=3"),
        "zero 3": ("zero.stage=3", "zero.offload=cpu", "BATCH_SIZE=5"),
        "interleaved": (
            *("PIPELINE=2", "model.num_chunks=2", "NUM_MICRO_BATCHES=2"),
            "schedule=interleaved",
        ),
        "1d in a pipeline, validation from a file": (
            *("PIPELINE=2", "TENSOR_PARALLEL=2", "MODE=1d", "loss_chunk=3"),
            "data.validation_path=tail.txt",
        ),
    },
    8: {"3d": ("TENSOR_PARALLEL=8", "MODE=3d", "BATCH_SIZE=3")},
}
SUBJECTS = (
    EvaluationRequest(),
    EvaluationRequest(samples=5, last_n=SEQ - 1),
    EvaluationRequest(split="validation,train", samples=30, last_n=3, sliding=True),
)
Found = dict[tuple[str, EvaluationRequest], list[Evaluation]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that contains a run with checkpoints of steps 20 and 40."""
    path = tmp_path_factory.mktemp("evaluated")
    (path / "corpus.txt").write_text(TEXT, encoding="utf-8")
    (path / "tail.txt").write_text(TEXT[-(len(TEXT) // 10) :], encoding="utf-8")
    (path / "tiny.py").write_text(TINY)
    (ended,) = run(Job(folder=path, overrides=OVERRIDES))
    assert ended.error == "", ended.err
    return path


def evaluate_all(
    rank: int, size: int, path: Path, cases: list[tuple[int, str, tuple[str, ...]]]
) -> Found:
    """Evaluate every request in every layout."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.chdir(path)
    found: Found = {}
    for port, name, overrides in cases:
        with world_of_run(rank, size, port, overrides) as world:
            for subject in SUBJECTS:
                one = evaluate(world, RunFolder(Path("run")), "20", subject, cache=path / "cache")
                found[name, subject] = one
    return found


@cache
def evaluations(path: Path, size: int) -> list[Found]:
    with contextlib.ExitStack() as held:
        cases = [
            (held.enter_context(free_port()), name, overrides)
            for name, overrides in LAYOUTS[size].items()
        ]
        return run_world(size, evaluate_all, path, cases, open_group=False)


@torch.no_grad()
def plainly(path: Path, subject: EvaluationRequest, split: str) -> dict[str, float]:
    """Compute the expected result from full logits, a sample at a time, and from the text."""
    folder = RunFolder(path / "run")
    model, words = load_model(open_saved_model(folder.path, "20"), torch.device("cpu"))
    cut = len(TEXT) - len(TEXT) // 10
    text = TEXT[:cut] if split == "train" else TEXT[cut:]
    scored, stride = subject.last_n or SEQ, SEQ
    starts = range(0, len(text) - SEQ, SEQ)
    if subject.sliding:
        stride = scored
        starts = range(0, len(text) - 1 - (SEQ - stride), stride)
    starts = starts[: subject.samples]
    loss, tops, count, size, characters = 0.0, [0, 0], 0, 0, 0
    for start in starts:
        ids = torch.from_numpy(words.encode(text[start : start + SEQ + 1]).astype("int64"))
        logits = model.logits(model(model.embed(ids[None, :-1]), len(ids) - 1))
        for place in range(SEQ - scored, len(ids) - 1):
            target = int(ids[1 + place])
            loss += float(F.cross_entropy(logits[place], ids[1 + place]))
            order = logits[place].topk(10).indices.tolist()
            tops[0] += target == order[0]
            tops[1] += target in order
            count += 1
            size += len(text[start + 1 + place].encode())
            characters += 1
    if subject.sliding and split == "validation":
        assert count == len(text) - 1 - (SEQ - stride), "each target once, but the first ones"
    return {
        "samples": len(starts),
        "targets": count,
        "bytes": size,
        "characters": characters,
        "loss": loss / count,
        "top_1": tops[0] / count,
        "top_10": tops[1] / count,
        "perplexity": math.exp(loss / count),
        "bits_per_byte": loss / math.log(2) / size,
        "loss_per_byte": loss / size,
        "perplexity_per_character": math.exp(loss / characters),
    }


@pytest.mark.parametrize(
    ("size", "name"),
    [
        pytest.param(size, name, marks=[pytest.mark.slow] if size > 4 else [])
        for size, names in LAYOUTS.items()
        for name in names
    ],
)
def test_every_layout_gives_the_result_of_full_logits(folder: Path, size: int, name: str) -> None:
    for subject in SUBJECTS:
        splits = subject.split.split(",") if subject.split else ["validation"]
        expected = [plainly(folder, subject, split) for split in splits]
        for found in evaluations(folder, size):
            results = found[name, subject]
            assert [(one.step, one.split, one.last_n, one.sliding) for one in results] == [
                (20, split, subject.last_n, subject.sliding) for split in splits
            ]
            for one, numbers in zip(results, expected, strict=True):
                assert 0 < numbers["top_1"] < numbers["top_10"] < 1
                for key, value in numbers.items():
                    exact = key in ("samples", "targets", "bytes", "characters", "top_1", "top_10")
                    tolerance = 0 if exact else 1e-12
                    assert getattr(one, key) == pytest.approx(value, rel=tolerance, abs=0), key


def test_the_command_evaluates_all_splits_under_torchrun(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(folder / "cache")}
    options = ["--step", "20", "--gpus", "1", "--split", "all", "--json"]
    assert cli.main(["evaluate", "run", *options], environ) == 0
    (found,) = json.loads(capfd.readouterr().out)
    (expected,) = evaluations(folder, 1)[0]["serial", EvaluationRequest()]
    assert (found["split"], found["loss"]) == ("validation", expected.loss)
    written = (folder / "run" / "evaluate-20-validation.json").read_text()
    assert json.loads(written)["characters"] == expected.characters


def test_loss_of_the_validation_split_is_that_of_the_run(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    (one,) = evaluations(folder, 1)[0]["serial", EvaluationRequest()]
    assert one.samples == one.split_samples == 10
    numbers = (one.loss, one.perplexity, one.loss_per_byte, one.loss_per_character)
    keys = ("val_loss", "val_perplexity", "val_loss_per_byte", "val_loss_per_character")
    assert [rows[19][key] for key in keys] == pytest.approx(numbers, rel=1e-12)


def test_impossible_evaluations_are_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (folder / "other.txt").write_text("Deich!?" * 200)
    error = failed_evaluation(folder, "data.path=other.txt")
    assert (
        "run/checkpoints/step-00000040 has no ids for '!', '?'; set data.path=... to text without"
        in error
    )
    assert "--sliding needs --last-n N" in failed_evaluation(
        folder, subject=EvaluationRequest(sliding=True)
    )
    synthetic = EvaluationRequest(sliding=True, last_n=3)
    error = failed_evaluation(folder, "data.type=synthetic", "data.path=None", subject=synthetic)
    assert "data.type='synthetic' are not windows of a text, so they cannot overlap" in error
    assert "--last-n 9 is more than tiny.py:3: SEQ_LEN=8" in failed_evaluation(
        folder, subject=EvaluationRequest(last_n=9)
    )
    assert "data.validation=0.0, so there is no validation split; use --split" in failed_evaluation(
        folder, "data.validation=0.0"
    )
    endless = EvaluationRequest(split="train")
    error = failed_evaluation(folder, "data.type=synthetic", "data.path=None", subject=endless)
    assert "data.type='synthetic' is endless; pass --samples N" in error
    assert "no checkpoint 3; use one of: 20, 40" in failed_evaluation(folder, step="3")
    damaged = resolve_weights(RunFolder(folder / "run"), "latest")
    data = next(damaged.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-1])
    assert f"step-00000040 is corrupt: {data.name}" in failed_evaluation(folder)
    (damaged / "training.json").write_text("{}")
    assert "step-00000040: training.json" in failed_evaluation(folder)


def test_changed_data_gives_a_warning(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    corpus, warning = (
        folder / "corpus.txt",
        "warning: the data has changed since run/checkpoints/step-0",
    )
    try:
        corpus.write_text(TEXT[1:] + TEXT[0], encoding="utf-8")
        for overrides, count in (((), 1), (("SEQ_LEN=4",), 0)):
            with free_port() as port, world_of_run(0, 1, port, overrides) as world:
                evaluate(
                    world, RunFolder(Path("run")), "20", EvaluationRequest(), cache=folder / "cache"
                )
            assert capfd.readouterr().err.count(warning) == count
    finally:
        corpus.write_text(TEXT, encoding="utf-8")


def test_last_n_ignores_the_targets_before() -> None:
    ids, targets = torch.arange(12).view(2, 6), torch.arange(1, 13).view(2, 6)
    assert mask_all_but_last((ids, targets), 2)[1].tolist() == [
        [-100] * 4 + [5, 6],
        [-100] * 4 + [11, 12],
    ]
    assert torch.equal(mask_all_but_last((ids, targets), 6)[1], targets)
    assert torch.equal(mask_all_but_last((ids, targets), None)[1], targets)
    assert targets[0, 0] == 1, "what was read stays as it is"


def test_bytes_of_tokens_add_up_to_the_text() -> None:
    words, text = GPT2(), "naïve café — 東京 🙂👩‍👧 and  so on\n\n" * 3
    for tokenizer in (words, Char.fit([text, None])):
        counts = tokenizer.byte_counts()
        assert counts.shape == (tokenizer.size,)
        assert counts[tokenizer.encode(text)].sum() == len(text.encode())
        assert counts[tokenizer.end_of_text] == 0


FOUND = Evaluation(
    run="runs/x",
    weights="w",
    step=1200,
    split="validation",
    samples=64,
    split_samples=64,
    seq_len=8,
    last_n=None,
    sliding=False,
    targets=512,
    bytes=1024,
    characters=256,
    loss=math.log(4),
    top_1=0.25,
    top_10=0.5,
    layout="serial",
    precision="bf16",
    overrides=(),
    seconds=1.0,
)


def test_result_as_table_and_json() -> None:
    assert FOUND.table().splitlines() == [
        "runs/x, step 1,200: validation, 64 samples, 512 targets",
        "  loss        1.3863",
        "  perplexity  4.00",
        "  bits/byte   1.0000",
        "  loss/byte   0.6931",
        "  loss/char   2.7726",
        "  top-1       25.00%",
        "  top-10      50.00%",
        "  serial, bf16, 1.0 s",
    ]
    part = replace(FOUND, samples=3, last_n=2, bytes=None, characters=None, step=None, loss=1000.0)
    assert "the first 3 samples, 512 targets, the last 2 of 8 positions" in part.table()
    assert "its tokens have no text" in part.table()
    assert "perplexity  inf" in part.table()
    fields = json.loads(part.as_json())
    assert (fields["perplexity"], fields["bits_per_byte"], fields["loss"]) == (None, None, 1000.0)
    assert json.loads(FOUND.as_json())["bits_per_byte"] == 1.0


def test_result_file_is_named_by_step_split_and_part() -> None:
    names = [
        one.path(Path("run")).name
        for one in (
            FOUND,
            replace(FOUND, last_n=2),
            replace(FOUND, last_n=2, sliding=True),
            replace(FOUND, samples=3),
            replace(FOUND, step=None),
        )
    ]
    assert names == [
        "evaluate-1200-validation.json",
        "evaluate-1200-validation-last-2.json",
        "evaluate-1200-validation-last-2-sliding.json",
        "evaluate-1200-validation-first-3.json",
        "evaluate-weights-validation.json",
    ]
