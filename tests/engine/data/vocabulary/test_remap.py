"""A run that resumes with other text: the ids of its checkpoints keep their meaning."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.checkpoint.load import SavedCheckpoint
from engine.data.batches.loader import load_batches
from engine.data.batches.windows import Windows
from engine.data.images.codebook import Codebook
from engine.data.source import Corpus
from engine.data.tokenizer import dump
from engine.data.tokenizer import load as load_tokenizer
from engine.data.tokenizers.char import Char
from engine.data.vocabulary.remap import corpus_for_model, use_saved_ids
from engine.evaluation.evaluate import evaluate
from engine.evaluation.request import EvaluationRequest
from engine.inout.open_model import open_saved_model
from engine.plan import make_plan
from engine.runs.folder import RunFolder
from engine.runs.start_candidates import StartOptions
from engine.world.world import World
from launch import cli
from tests.support.checkpoints import reseal
from tests.support.evaluation import failed_evaluation, world_of_run
from tests.support.jobs import RUN, TINY, Job, checkpoints_of, run, run_all, without_sample
from tests.support.worlds import free_port

FIRST = "the cat sat on the mat; " * 40
SECOND = "élan \U0001f600 at noon, that hot dish!\n" * 30  # sorts before, among and after
TEXT = ("data.type=text", "data.tokenizer=char", "data.path=corpus.txt", "data.cache=cache")
OVERRIDES = (*TEXT, "checkpoint.every=2")
NEW = "'\\n', '!', ',', 'd', 'i', 'l', 'é', '😀'"


def job(folder: Path, *overrides: str, init: str | None = None, **more: Any) -> Job:
    options = StartOptions(
        output=Path(more.pop("output", RUN)),
        init_from=Path(init) if init else None,
        resume=more.pop("resume", "none"),
        new_data=more.pop("new_data", False),
    )
    fields = {"planted": without_sample, **more}
    return Job(folder=folder, overrides=(*OVERRIDES, *overrides), options=options, **fields)


def words_of(folder: Path, step: int, run: str = str(RUN)) -> Any:
    saved = SavedCheckpoint(checkpoints_of(folder, Path(run)).folder(step)).training.tokenizer
    assert saved is not None
    return load_tokenizer(saved)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with checkpoints 1 and 2 of the first text, 3 and 4 of the second."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "tiny.py").write_text(TINY)
    (folder / "corpus.txt").write_text(FIRST)
    every = ("checkpoint.every=1", "checkpoint.keep=9", "eval.every=1", "model.vocab_size=40")
    (first,) = run(job(folder, *every, "MAX_STEPS=2"))
    assert first.error == "", first.err
    (folder / "corpus.txt").write_text(SECOND)
    again = job(folder, *every, "MAX_STEPS=4", resume="run", new_data=True)
    ended = run_all([replace(again, options=replace(again.options, new_data=False)), again])
    refused, second = (of_ranks[0] for of_ranks in ended)
    assert refused.err.splitlines()[-1] == "pass --allow-new-data to resume anyway"
    assert second.error == "", second.err
    (folder / "output").write_text(second.out)
    return folder


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("ba", []),
        ("abc", ["new token in the data: 'c' gets id 2; the 2 ids of w keep their meaning"]),
        (
            "dabc",
            ["new tokens in the data: 'c', 'd' get ids 2 to 3; the 2 ids of w keep their meaning"],
        ),
    ],
)
def test_new_tokens_are_reported_with_their_ids(text: str, lines: list[str]) -> None:
    split = Windows(np.arange(len(text)), seq_len=1)
    corpus = Corpus(
        train=split, validation=split, tokenizer=Char.fit([text]), description="", fingerprint=""
    )
    saved = dump(Char("ab"))
    assert corpus_for_model(corpus, saved, vocab_size=9, cite=str, path="w")[1] == lines


@pytest.fixture
def folder(both: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(both, tmp_path / "copy"))


def test_new_characters_get_new_ids_and_old_ones_keep_theirs(both: Path) -> None:
    characters = "".join(sorted(set(FIRST)))
    assert words_of(both, 1).characters == words_of(both, 2).characters == characters
    new = "".join(sorted(set(SECOND) - set(FIRST)))
    assert words_of(both, 3).characters == words_of(both, 4).characters == characters + new
    first, last = len(characters), len(characters + new) - 1
    assert (
        f"new tokens in the data: {NEW} get ids {first} to {last}; the {first} ids of "
        "run/checkpoints/step-00000002 keep their meaning"
    ) in (both / "output").read_text().splitlines()


def test_batches_decode_to_the_text_by_the_saved_ids(both: Path) -> None:
    plan = make_plan(both / "tiny.py", gpus=1, overrides=OVERRIDES, environ={})
    data = plan.settings.data.model_copy(
        update={"path": str(both / "corpus.txt"), "cache": str(both / "cache")}
    )
    settings = plan.settings.model_copy(update={"data": data})
    batches = load_batches(settings, data_size=1, cache=both / "cache")
    saved = SavedCheckpoint(checkpoints_of(both).folder(2)).training.tokenizer
    adopted = batches.with_corpus(use_saved_ids(batches.corpus, saved)[0])
    words, plain = words_of(both, 4), batches.corpus.tokenizer
    assert plain is not None
    assert not isinstance(plain, Codebook)
    for step in (1, 2, 7):
        for ours, theirs in zip(adopted.batch(step, 0, 0), batches.batch(step, 0, 0), strict=True):
            for one, other in zip(ours.numpy(), theirs.numpy(), strict=True):
                assert words.decode(one) == plain.decode(other) in SECOND * 2
    held, other = adopted.validation.batch(0, 0), batches.validation.batch(0, 0)
    assert words.decode(held[1][0].numpy()) == plain.decode(other[1][0].numpy())


def test_generate_and_export_use_the_vocabulary_of_the_checkpoint(
    both: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(both)
    for step, known in ((1, FIRST), (4, FIRST + SECOND)):
        command = ["generate", "run", "--step", str(step), "--prompt", "the ", "--tokens", "200"]
        assert cli.main([*command, "--temperature", "9"], {}) == 0
        text = capsys.readouterr().out.removesuffix("\n")
        assert set(text) == set(known)
        command = ["export", "run", "--step", str(step), "--to", "safetensors"]
        assert cli.main(command, {}) == 0
        written = Path(capsys.readouterr().out.partition(": ")[0])
        assert open_saved_model(written).tokenizer == {
            "type": "char",
            "characters": words_of(both, step).characters,
        }
    assert cli.main(["generate", "run", "--step", "2", "--prompt", "dish"], {}) == 2
    assert "the character 'd' (U+0064)" in capsys.readouterr().err
    final = open_saved_model(both / "run" / "model.safetensors").tokenizer
    assert final == {"type": "char", "characters": words_of(both, 4).characters}


def test_evaluation_uses_the_ids_of_the_checkpoint(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(both)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (both / "first.txt").write_text(FIRST)
    val_loss = SavedCheckpoint(checkpoints_of(both).folder(2)).training.val_loss
    with free_port() as port, world_of_run(0, 1, port, ("data.path=first.txt",)) as world:
        (found,) = evaluate(
            world, RunFolder(Path(RUN)), "2", EvaluationRequest(), cache=both / "cache"
        )
    assert found.loss == pytest.approx(val_loss, rel=1e-6)
    refused = failed_evaluation(both, step="2")
    assert f"run/checkpoints/step-00000002 has no ids for {NEW};" in refused


def test_too_small_vocabulary_is_rejected_with_working_remedies(tmp_path: Path) -> None:
    """Every remedy in the messages works."""
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "corpus.txt").write_text(FIRST)
    size, checkpoint = len(set(FIRST)), "run/checkpoints/step-00000001"
    small, larger = f"model.vocab_size={size}", f"model.vocab_size={size + 1}"
    one = "MAX_STEPS=1"
    changed = {"data.tokenizer=gpt2", "model.vocab_size=50257"}

    jobs = [
        job(tmp_path, f"model.vocab_size={size - 1}", one),
        job(tmp_path, small, one),
        job(tmp_path, small, resume="run", new_data=True, planted=with_another_character),
        job(tmp_path, small, one, output="new", init=checkpoint),
        job(tmp_path, larger, one, output="new", init=checkpoint),
        job(tmp_path, *changed, one, output="bpe", init=checkpoint),
    ]
    ended = [of_ranks[0] for of_ranks in run_all(jobs)]
    tokens = f"{size + 1} tokens, of which {checkpoint} lacks '😀' "
    refused = f"command line: {small} is too small for {tokens}"
    assert f"is too small for {size} tokens (" in ended[0].err
    assert ended[0].err.endswith(f"; set {small}\n")
    assert ended[1].error == "", ended[1].err
    assert ended[2].err.startswith(refused)
    assert ended[2].err.endswith(f"; begin a new run with --init-from {checkpoint} {larger}\n")
    assert ended[3].err.startswith(refused)
    assert ended[3].err.endswith(f"; set {larger}\n")
    assert ended[4].error == "", ended[4].err
    assert words_of(tmp_path, 1, "new").characters == "".join(sorted(set(FIRST))) + "😀"
    line = f"data.tokenizer='gpt2': its ids have other meanings than in {checkpoint}"
    assert line in ended[5].out, ended[5]


@contextlib.contextmanager
def with_another_character(world: World) -> Iterator[None]:
    Path("corpus.txt").write_text(FIRST + "\U0001f600")
    with without_sample(world):
        yield


def test_checkpoint_without_a_tokenizer_uses_that_of_its_run(folder: Path) -> None:
    """Old versions wrote such checkpoints. Another type of tokenizer is rejected, too."""
    checkpoint = checkpoints_of(folder).folder(4)
    file = checkpoint / "training.json"
    content = json.loads(file.read_text())
    saved = content.pop("tokenizer")
    file.write_text(json.dumps(content))
    reseal(checkpoint)
    assert open_saved_model(checkpoint).tokenizer == saved
    assert json.loads((RunFolder(folder / RUN).tokenizer).read_text()) == saved
    other = ("data.tokenizer=gpt2", "model.vocab_size=50257", "MAX_STEPS=5")
    refused, ended = run_all(
        [
            job(folder, *other, resume="run", new_data=True),
            job(folder, "model.vocab_size=40", "MAX_STEPS=5", resume="run"),
        ]
    )
    assert refused[0].err == (
        "command line: data.tokenizer='gpt2' differs from the tokenizer of "
        "run/checkpoints/step-00000004, 'char'; set data.tokenizer='char'\n"
    )
    assert ended[0].error == "", ended[0].err
