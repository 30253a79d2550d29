"""Exports: their paths, what they overwrite, and the tensors and metadata in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.discover import module_names
from engine.errors import UserError
from engine.inout.export import EXPORTERS_PACKAGE, ExportOptions, export, exporter
from engine.inout.open_model import open_saved_model
from engine.inout.save_weights import save_unsharded
from engine.inout.saved_model import SavedModel, metadata_of
from engine.runs.folder import RunFolder
from models.chunks import ModelChunks
from models.gpt import GPT
from models.parallel.context import ParallelContext
from tests.engine.inout.support import SIZES, UNTIED, drawn, trained
from tests.support.checkpoints import parameters_of, write
from tests.support.training import TrainingCase
from tests.support.worlds import run_world

FULL = ExportOptions(dtype=torch.float32, shard_bytes=10**9)
HALF = ExportOptions(dtype=torch.bfloat16, shard_bytes=10**9)
RUN = TrainingCase(mode="1d", tensor=2, heads=10)


def to(name: str, model: SavedModel, out: Path | None = None, **more: Any) -> Path:
    options = more.pop("options", FULL)
    return export(model, exporter(name), options, out=out, force=more.pop("force", False))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a run with two checkpoints, the first of which has the lower loss."""
    folder = RunFolder(tmp_path_factory.mktemp("exports") / "run")
    run_world(2, write, RUN, folder.checkpoints)
    run_world(1, write, TrainingCase(heads=10), folder.checkpoints, 3)
    return folder


def test_exported_checkpoint_is_unsharded_and_in_the_exports_of_its_run(run: RunFolder) -> None:
    assert module_names(EXPORTERS_PACKAGE) == ["hf", "pt", "safetensors"]
    for name, suffix in (("hf", "-hf"), ("pt", ".pt"), ("safetensors", ".safetensors")):
        assert (
            to(name, open_saved_model(run.path)) == run.path / "exports" / f"step-00000003{suffix}"
        )
        older = open_saved_model(run.path, "2")
        assert to(name, older) == run.path / "exports" / f"step-00000002{suffix}"
    expected = parameters_of(SavedCheckpoint(CheckpointDirectory(run.checkpoints).folder(2)))
    found = torch.load(run.path / "exports" / "step-00000002.pt", weights_only=True)
    again = dict(
        open_saved_model(run.path / "exports" / "step-00000002.safetensors").read_tensors()
    )
    assert found.keys() == again.keys() == expected.keys()
    for name, tensor in expected.items():  # whole and without padding
        assert torch.equal(found[name], tensor)
        assert torch.equal(again[name], tensor)


def test_final_weights_are_exported_to_the_exports_of_the_run(tmp_path: Path) -> None:
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float64, compute=torch.float64
    )
    model = ModelChunks([GPT(UNTIED, part)])
    model.initialise(1)
    save_unsharded(model, RunFolder(tmp_path).weights, metadata_of(UNTIED), writes=True)
    found = open_saved_model(tmp_path)
    assert (found.config, found.dtype) == (UNTIED, torch.float64)
    out = to("pt", found)
    assert out == tmp_path / "exports" / "model.pt"
    rounded = torch.load(out, weights_only=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(rounded[name], parameter.float())


def test_exported_safetensors_keep_config_tokenizer_and_step(tmp_path: Path) -> None:
    words = {"type": "char", "characters": "ab"}
    model = trained(UNTIED, tokenizer=words, step=7)
    found = open_saved_model(to("safetensors", model, tmp_path / "x", options=HALF))
    assert (found.config, found.tokenizer, found.step) == (UNTIED, words, 7)
    assert found.dtype == torch.bfloat16
    expected = drawn(UNTIED)
    assert all(torch.equal(t, expected[name].bfloat16()) for name, t in found.read_tensors())


@pytest.mark.parametrize("name", module_names(EXPORTERS_PACKAGE))
def test_existing_export_is_replaced_only_with_force(name: str, tmp_path: Path) -> None:
    model, out = trained(), tmp_path / "out"
    to(name, model, out)
    with pytest.raises(UserError) as caught:
        to(name, model, out)
    assert str(caught.value) == (
        f"{out} exists already; name another --out, or --force to replace it"
    )
    before = content(out)
    to(name, trained(seed=2), out, force=True)
    assert content(out) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def content(path: Path) -> list[bytes]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.read_bytes() for file in files]


def test_force_keeps_files_that_no_export_wrote(tmp_path: Path) -> None:
    out = tmp_path / "out"
    to("hf", trained(), out)
    (out / "thesis.tex").touch()
    with pytest.raises(
        UserError, match=r"out contains thesis\.tex, which --force does not remove; name another"
    ):
        to("hf", trained(), out, force=True)
    with pytest.raises(
        UserError,
        match=r"out is a folder, but the format of --to writes a file; name another --out$",
    ):
        to("pt", trained(), out, force=True)
    with pytest.raises(
        UserError, match=r"thesis\.tex is a file, but the format of --to writes a folder; name"
    ):
        to("hf", trained(), out / "thesis.tex", force=True)
    assert len([*out.iterdir()]) == 4


def test_corrupt_checkpoint_is_not_exported(run: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "step-00000002"
    path.mkdir()
    for file in CheckpointDirectory(run.checkpoints).folder(2).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    shard = sorted(path.glob("*.distcp"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError) as caught:
        to("pt", open_saved_model(path), tmp_path / "out")
    wrong = f"{shard.name} was changed: its SHA-256 differs"
    assert str(caught.value) == f"{path} is corrupt: {wrong}; restore it, or use other weights"
    assert not (tmp_path / "out").exists()


def no_model(path: Path) -> None:
    path.mkdir()


def other_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(drawn(SIZES), path)


def other_tensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(drawn(UNTIED), path, metadata=trained(SIZES).metadata)


def other_metadata(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(drawn(SIZES), path, metadata={"model": '{"n_layer": 0}'})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            no_model,
            "x contains no model; give a run, a checkpoint, a Hugging Face folder, a folder that ",
        ),
        (other_safetensors, "x has no model config in its metadata: cuboid did not write it"),
        (other_tensors, "x: its tensors do not match the model in its metadata"),
        (other_metadata, "x: model.n_layer: Input should be greater than or equal to 1"),
    ],
)
def test_path_without_a_model_is_rejected(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "x")
    with pytest.raises(UserError) as caught:
        open_saved_model(tmp_path / "x")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_step_is_rejected(run: RunFolder, tmp_path: Path) -> None:
    out = to("hf", trained(), tmp_path / "out")
    with pytest.raises(UserError, match=r"out has no checkpoints, so there is no 4; leave"):
        open_saved_model(out, "4")
    with pytest.raises(UserError, match=r"run: no checkpoint 4; use one of: 2, 3$"):
        open_saved_model(run.path, "4")
    with pytest.raises(UserError, match="nowhere contains no model"):
        open_saved_model(tmp_path / "nowhere")
