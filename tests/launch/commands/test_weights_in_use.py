"""cuboid evaluate and generate with a trained run: in another layout, at each checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.data.tokenizer import load
from engine.data.tokenizers.gpt2 import GPT2
from engine.generation.text import SamplingOptions, generate_text
from engine.inout.export import ExportOptions, export, exporter
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import recorded_settings
from launch import cli, torchrun
from models import load_state
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.context import ParallelContext
from tests.engine.inout.support import SIZES, trained
from tests.support.checkpoints import parameters_of
from tests.support.jobs import TINY, Job, run
from tests.support.programs import by_hand

OVERRIDES = (
    *("data.type=text", "data.tokenizer=char", "data.path=corpus.txt", "data.cache=cache"),
    *("model.vocab_size=40", "precision=float64", "MAX_STEPS=30"),
    *("checkpoint.every=10", "eval.every=10", "log.dir=runs/x-20260101-000000"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose runs/ has a run with checkpoints at steps 10, 20 and 30."""
    path = tmp_path_factory.mktemp("in_use")
    (path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    (path / "tiny.py").write_text(TINY)
    (ended,) = run(Job(folder=path, overrides=OVERRIDES))
    assert ended.error == "", ended.err
    return path


def forked(ranks: int, arguments: Sequence[str], *, program: str) -> int:
    """Run a program on ranks as torchrun does, in forked processes."""
    left = by_hand(ranks, arguments, Path.cwd(), program)
    assert [rank.err for rank in left] == [""] * ranks
    print("".join(rank.out for rank in left), end="")
    return max(rank.code for rank in left)


def test_run_is_evaluated_in_another_layout(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(torchrun, "run", forked)
    assert cli.main(["evaluate", "--step", "20", "PIPELINE=2", "--json"], {}) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    folder = RunFolder(place / "runs" / "x-20260101-000000")
    kept = json.loads((folder.path / "evaluate-20-validation.json").read_text())
    assert found == kept
    assert found["layout"] == "tensor 1 (serial) x pipeline 2 x data 1"
    assert found["overrides"] == ["PIPELINE=2"]
    val_loss = SavedCheckpoint(CheckpointDirectory(folder.checkpoints).folder(20)).training.val_loss
    assert found["loss"] == pytest.approx(val_loss, rel=1e-12)
    assert found["bytes"] == found["targets"], "a byte a character, each of them a token"


def expected(folder: RunFolder, step: int) -> str:
    """Compute the text from weights that are read from the checkpoint one by one."""
    settings = recorded_settings(folder)
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float64, compute=torch.float64
    )
    model = GPT(GPTConfig.of(settings.model), part).eval()
    saved = SavedCheckpoint(CheckpointDirectory(folder.checkpoints).folder(step))
    load_state.load_state(ModelChunks([model]), parameters_of(saved).items())
    words = load(json.loads(folder.tokenizer.read_text()))
    sampling = SamplingOptions(tokens=30, temperature=1.0, top_p=0.9, seed=5)
    return "the " + "".join(generate_text(model, words, "the ", sampling)) + "\n"


def test_run_generates_at_each_checkpoint(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    folder = RunFolder(Path("runs/x-20260101-000000"))
    losses = {
        step: loss
        for step, loss in CheckpointDirectory(folder.checkpoints).losses().items()
        if loss is not None
    }
    best = min(losses, key=lambda step: losses[step])
    texts = {}
    for which, step in (("10", 10), ("best", best), ("latest", 30)):
        command = ["generate", "--step", which, "--prompt", "the ", "--tokens", "30"]
        assert cli.main([*command, "--temperature", "1", "--top-p", "0.9", "--seed", "5"], {}) == 0
        texts[step] = capsys.readouterr().out
        assert texts[step] == expected(folder, step)
    assert len(set(texts.values())) == len(texts) >= 2


def test_corrupt_weights_are_rejected(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    damaged = CheckpointDirectory(RunFolder(Path("runs/x-20260101-000000")).checkpoints).folder(10)
    file = next(damaged.glob("*.distcp"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert cli.main(["generate", "--step", "10", "--prompt", "the "], {}) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step-00000010 is corrupt: " in captured.err
    assert file.name in captured.err


def test_hugging_face_folder_generates_the_text_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokenizer is the folder's, too."""
    transformers = pytest.importorskip("transformers")
    sizes = replace(SIZES, vocab_size=50257)
    words = {"type": "gpt2", **GPT2().state()}
    options = ExportOptions(dtype=torch.float32, shard_bytes=10**9)
    export(
        trained(sizes, tokenizer=words), exporter("hf"), options, out=tmp_path / "hf", force=False
    )
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "hf")
    asked = tokenizer("Once upon a time", return_tensors="pt")
    expected = model.generate(**asked, do_sample=False, max_new_tokens=15, pad_token_id=0)
    command = ["generate", str(tmp_path / "hf"), "--prompt", "Once upon a time", "--tokens", "15"]
    assert cli.main([*command, "--temperature", "0"], {}) == 0
    assert capsys.readouterr().out == tokenizer.decode(expected[0]) + "\n"
