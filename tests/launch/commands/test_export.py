"""cuboid export and cuboid import on the command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.data.tokenizers.gpt2 import GPT2
from engine.inout.export import ExportOptions, export, exporter
from engine.inout.open_model import open_saved_model
from engine.plan import make_plan
from engine.runs.folder import RunFolder
from launch import cli
from models.config import GPTConfig
from tests.engine.inout.support import SIZES, UNTIED, trained
from tests.support.checkpoints import write
from tests.support.training import TrainingCase
from tests.support.worlds import run_world

COUNT = "31,728"  # parameters of SIZES


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(path: Path, model: GPTConfig = SIZES) -> None:
    options = ExportOptions(dtype=torch.float32, shard_bytes=10**9)
    export(trained(model), exporter("safetensors"), options, out=path, force=False)


def test_newest_run_with_weights_is_exported(here, capsys):
    for name in ("a-20260101-000000", "b-20250101-000000", "c-20270101-000000"):
        (here / "runs" / name).mkdir(parents=True)
    weights(RunFolder(Path("runs/a-20260101-000000")).weights)
    run_world(1, write, TrainingCase(heads=10), here / "runs/b-20250101-000000/checkpoints")
    assert cli.main(["export", "--to", "pt"]) == 0
    out = "runs/a-20260101-000000/exports/model.pt"
    source = "runs/a-20260101-000000/model.safetensors"
    assert capsys.readouterr().out == f"{out}: {COUNT} parameters in float32, from {source}\n"
    assert {t.dtype for t in torch.load(out, weights_only=True).values()} == {torch.float32}

    older = ["export", "runs/b-20250101-000000", "--to", "hf", "--step", "2", "--dtype", "bf16"]
    assert cli.main([*older, "--out", "there/gpt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("there/gpt: ")
    assert lines[0].endswith("in bf16, from runs/b-20250101-000000/checkpoints/step-00000002")
    assert lines[1] == "exported without a tokenizer: the run was trained on token ids, not on text"
    assert open_saved_model(Path("there/gpt")).dtype == torch.bfloat16


def test_import_after_export_gives_the_same_weights(here, capsys):
    weights(Path("x.safetensors"), UNTIED)
    assert cli.main(["export", "x.safetensors", "--to", "hf", "--shard-size", "10KB"]) == 0
    first = Path("exports/x-hf")
    assert len([*first.glob("model-*.safetensors")]) > 3
    assert cli.main(["import", "exports/x-hf", "--from", "hf"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "cuboid train imported/x-hf/x-hf.py --init-from imported/x-hf"
    count = lines[-2].split()[1]
    assert int(count.replace(",", "")) == sum(t.numel() for _, t in trained(UNTIED).read_tensors())
    home = Path("imported/x-hf")
    assert {path.name for path in home.iterdir()} == {"model.safetensors", "x-hf.py"}

    plan = make_plan(home / "x-hf.py", gpus=1, environ={})
    assert GPTConfig.of(plan.settings.model) == UNTIED
    again = ["export", str(home), "--to", "hf", "--shard-size", "10KB", "--out", "again"]
    assert cli.main(again) == 0
    for path in first.iterdir():
        assert (Path("again") / path.name).read_bytes() == path.read_bytes(), path.name
    assert cli.main(["export", "x.safetensors", "--to", "hf", "--force"]) == 0
    assert [path.name for path in first.glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["export", "--to", "hf"], "no run under runs/ has weights; pass the path of a run"),
        (
            ["export", "--to", "onnx"],
            "argument --to: invalid choice: 'onnx' (choose from 'hf', 'pt'",
        ),
        (["export", "nowhere", "--to", "hf"], "argument run: nowhere does not exist in "),
        (
            ["export", "x.safetensors", "--to", "pt"],
            "exports/x.pt exists already; name another --out, or --force",
        ),
        (
            ["export", "x.safetensors", "--to", "pt", "--step", "best"],
            "has no checkpoints, so there is no best",
        ),
        (["export", "x.safetensors", "--to", "hf", "--shard-size", "0"], "is not a size, such as"),
        (["import", "nowhere", "--from", "hf"], "argument path: nowhere does not exist in "),
        (["import", ".", "--from", "hf"], "config.json"),
        (["import", ".", "--from", "gguf"], "argument --from: invalid choice: 'gguf'"),
        (
            ["import", "there", "--from", "hf"],
            "imported/there exists already; name another --out\n",
        ),
    ],
)
def test_user_errors_are_one_line(argv, message, here, capsys):
    weights(Path("x.safetensors"))
    Path("exports").mkdir()
    Path("exports/x.pt").touch()
    Path("imported/there").mkdir(parents=True)
    options = ExportOptions(dtype=torch.float32, shard_bytes=10**9)
    export(trained(), exporter("hf"), options, out=Path("there"), force=False)
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_wrong_path_is_rejected_without_importing_torch(here):
    code = (
        "import sys; from launch import cli; cli.main(sys.argv[1:]); print('torch' in sys.modules)"
    )
    for argv in (["export", "--to", "hf"], ["import", "nowhere", "--from", "hf"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *argv],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "False\n"


def test_import_of_gpt2_prints_the_command_that_trains_on_text(here, capsys):
    sizes = replace(SIZES, n_layer=1, vocab_size=50_257)
    options = ExportOptions(dtype=torch.float32, shard_bytes=10**9)
    model = trained(sizes, tokenizer={"type": "gpt2", **GPT2().state()})
    export(model, exporter("hf"), options, out=Path("gpt"), force=False)
    assert cli.main(["import", "gpt", "--from", "hf", "--out", "in"]) == 0
    command = "cuboid train in/in.py --init-from in data.path=my.txt"
    assert capsys.readouterr().out.splitlines()[-1] == command
    plan = make_plan(Path("in/in.py"), gpus=1, environ={})
    assert f"# {command}\n" in Path("in/in.py").read_text()
    assert (plan.settings.data.type, plan.settings.data.tokenizer) == ("auto", "gpt2")
    assert open_saved_model(Path("in")).tokenizer == model.tokenizer
