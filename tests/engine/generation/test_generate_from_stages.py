"""Weights of a run with pipeline and ZeRO, and their text, equal those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.generation.text import SamplingOptions, generate_text, load_model
from engine.inout.open_model import open_saved_model
from engine.runs.folder import RunFolder
from tests.support.jobs import TINY, Job, run

TEXT = "The quick brown fox jumps over the lazy dog and "
OVERRIDES = (
    "data.type=text",
    "data.tokenizer=char",
    "data.path=corpus.txt",
    "model.n_layer=4",
    "model.vocab_size=61",  # odd, and more than the text has characters
    "precision=float64",
    "optimizer.lr=0.003",
    "optimizer.eps=1e-4",
    "MAX_STEPS=20",
    "checkpoint.every=None",
    "log.dir=run",
)
STAGES = ("PIPELINE=2", "BATCH_SIZE=4", "NUM_MICRO_BATCHES=2")
LAYOUTS = {
    "pipeline": (*STAGES, "zero.stage=3", "schedule=zero_bubble"),
    "interleaved": (*STAGES, "zero.stage=2", "model.num_chunks=2"),
}


def trained(folder: Path, ranks: int, overrides: tuple[str, ...]) -> RunFolder:
    folder.mkdir()
    (folder / "corpus.txt").write_text(TEXT * 40)
    (folder / "tiny.py").write_text(TINY)
    for ended in run(Job(folder=folder, overrides=(*OVERRIDES, *overrides)), ranks):
        assert ended.error == "", ended.err
    return RunFolder(folder / "run")


def continued(folder: RunFolder) -> str:
    model, words = load_model(open_saved_model(folder.path), torch.device("cpu"))
    pieces = generate_text(model, words, "The qu", SamplingOptions(tokens=60, seed=1))
    return "".join(pieces)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("runs") / "alone", 1, ("BATCH_SIZE=8",))


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_and_text_equal_those_of_one_process(
    name: str, alone: RunFolder, tmp_path: Path
) -> None:
    cut = trained(tmp_path / "cut", 4, LAYOUTS[name])
    ours, theirs = load_file(cut.weights), load_file(alone.weights)
    assert ours.keys() == theirs.keys()
    for parameter, tensor in theirs.items():
        assert (ours[parameter] - tensor).norm() <= 1e-12 * tensor.norm(), parameter
    text = continued(cut)
    assert text == continued(alone)
    assert len(set(text)) > 5
