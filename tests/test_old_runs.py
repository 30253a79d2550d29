"""Old runs work with this version: runs and checkpoints that an earlier version wrote
(tests/old_runs) are resumed, evaluated, exported and read, and new runs write the same keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from launch import cli
from tests.support.old_runs import (
    ALONE,
    EXPECTED,
    SHARDED,
    key_paths,
    read_log,
    start,
    unpack,
)

STEP_4, STEP_8 = (SHARDED / "checkpoints" / f"step-{step:08}" for step in (4, 8))
SERIAL = ("TENSOR_PARALLEL=1", "MODE=None", "zero.stage=0", "BATCH_SIZE=8")
PIPELINE = (*SERIAL, "PIPELINE=2")
FP16, FLOAT32, OTHER_MASKS = 1e-3, 1e-4, 0.4
"""Relative tolerances: processors round differently, and versions draw other dropout masks."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the old runs; tests only add files."""
    return unpack(tmp_path_factory.mktemp("old") / "here")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Resume the sharded run at step 4 in its own layout."""
    folder = unpack(tmp_path_factory.mktemp("sharded") / "here")
    start(folder, 4, ["--resume", str(STEP_4)])
    return folder


@pytest.fixture(scope="module")
def other_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Resume the sharded run at step 4 as a pipeline."""
    folder = unpack(tmp_path_factory.mktemp("other") / "here")
    (out,) = start(folder, 2, ["--resume", str(STEP_4), *PIPELINE])
    assert "tensor 2 (1d) x pipeline 1 x data 2, ZeRO 1" in out, "of the checkpoint"
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In one process: resume the killed run, and train both configs from step 0 in fresh-NAME.

    The older version changed a learning rate by epochs only between epochs: 0.3 up to step 6, then
    0.15. Now it changes within an epoch, so those two rates are set.
    """
    folder = unpack(tmp_path_factory.mktemp("alone") / "here")
    first = ("lr_scheduler.type=constant", "MAX_STEPS=6")
    second = ("lr_scheduler.type=constant", "optimizer.lr=0.15", "MAX_STEPS=11")
    anew = ["alone.py", "--init-from", str(SHARDED), "--output", "fresh-alone"]
    out, *_ = start(
        folder,
        1,
        ["--resume", str(ALONE), *first],
        ["--resume", str(ALONE), *second],
        [*anew, *first],
        ["--resume", "fresh-alone", *second],
        ["sharded.py", *SERIAL, "--output", "fresh-sharded"],
    )
    assert "it changes within an epoch now, and only between epochs when" in out
    assert "the next steps draw other masks" in out
    return folder


LEARNED = ("loss", "grad_norm", "val_loss")
EXACT = ("lr", "tokens", "loss_scale", "skipped")


def assert_continues(
    found: dict[int, dict[str, Any]],
    expected: dict[int, dict[str, Any]],
    tolerance: float,
    exact: tuple[str, ...] = EXACT,
) -> None:
    assert found.keys() == expected.keys()
    for step, row in expected.items():
        for key, bound in (
            *((key, tolerance) for key in LEARNED),
            *((key, 1e-12) for key in exact),
        ):
            ours, theirs = found[step].get(key), row.get(key)
            near = ours == theirs or (ours and theirs and abs(ours / theirs - 1) <= bound)
            assert near, f"step {step}: {key} was {theirs} and is {ours}"


def assert_trained(run: Path, recorded: str) -> None:
    """Check a run with dropout: masks are those of this version, so losses are those of its own
    record, and near those of the old version; all else is the old version's."""
    found, before = read_log(run / "log.jsonl"), read_log(EXPECTED / "alone.log.jsonl")
    assert_continues(found, read_log(EXPECTED / recorded), FLOAT32, exact=())
    assert_continues(found, before, OTHER_MASKS)


def test_sharded_run_resumed_in_its_layout_has_the_old_losses(old: Path, sharded: Path) -> None:
    expected, found = (read_log(path / SHARDED / "log.jsonl") for path in (old, sharded))
    assert_continues(found, expected, FP16)
    assert found[4] == expected[4], "rows up to the checkpoint are kept"
    assert found[5] != expected[5], "rows after it are new"


def test_sharded_run_resumed_in_another_layout_has_the_old_losses(
    old: Path, other_layout: Path
) -> None:
    expected, found = (read_log(path / SHARDED / "log.jsonl") for path in (old, other_layout))
    assert_continues(found, expected, FP16)
    manifest = json.loads((other_layout / STEP_8 / "manifest.json").read_text())
    assert manifest["layout"]["pipeline"] == 2


def test_killed_run_resumed_has_the_losses_of_an_uninterrupted_run(old: Path, alone: Path) -> None:
    assert json.loads((old / ALONE / "status.json").read_text())["state"] == "running"
    assert_trained(alone / ALONE, "alone.resumed.jsonl")
    found = read_log(alone / ALONE / "log.jsonl")
    assert found[3] == read_log(old / ALONE / "log.jsonl")[3], "rows up to the checkpoint are kept"
    assert json.loads((alone / ALONE / "status.json").read_text())["state"] == "finished"


def test_old_config_trained_from_step_0_has_the_old_losses(old: Path, alone: Path) -> None:
    """The random numbers depend on the names of parameters, axes and dropout sites."""
    expected = read_log(old / SHARDED / "log.jsonl")
    assert_continues(read_log(alone / "fresh-sharded" / "log.jsonl"), expected, FP16)
    assert_trained(alone / "fresh-alone", "alone.fresh.jsonl")


def test_old_run_evaluated_in_another_layout_has_the_old_loss(old: Path, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "here")
    arguments = [str(SHARDED), "TENSOR_PARALLEL=1", "MODE=None", "--json"]
    (out,) = start(folder, 1, arguments, program="evaluate_gpt")
    found, record = json.loads(out), SHARDED / "evaluate-8-validation.json"
    expected = json.loads((old / record).read_text())
    for key in ("loss", "perplexity", "bits_per_byte"):
        assert found[key] == pytest.approx(expected[key], rel=FP16), key
    same = ("run", "weights", "step", "split", "samples", "split_samples", "seq_len", "last_n")
    for key in (*same, "targets", "bytes", "precision"):
        assert found[key] == expected[key], key
    assert set(key_paths(expected)) - set(key_paths(found)) == set()
    assert found == json.loads((folder / record).read_text())
    val_loss = read_log(old / SHARDED / "log.jsonl")[8]["val_loss"]
    assert found["loss"] == pytest.approx(val_loss, rel=FP16)


# The commands of one process


def cuboid(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """Run a command in the folder and return its output."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code = cli.main(words, {"XDG_CACHE_HOME": str(folder / "cache")})
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def test_old_run_generates_the_old_text(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("generate", str(SHARDED), "--prompt", "The ", "--tokens", "30")
    text = cuboid(old, monkeypatch, capsys, *command)
    assert text == (EXPECTED / "generated.txt").read_text()


def read_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint with torch only."""
    reader = dcp.FileSystemReader(folder)
    tensors = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if isinstance(stored, dcp.metadata.TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("step", [4, 8])
def test_exported_weights_are_those_in_the_old_checkpoint(
    old: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    step: int,
) -> None:
    out = tmp_path / "exported.safetensors"
    command = ("export", str(SHARDED), "--to", "safetensors", "--step", str(step))
    cuboid(old, monkeypatch, capsys, *command, "--out", str(out))
    tensors = read_checkpoint(old / {4: STEP_4, 8: STEP_8}[step])
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    found = load_file(out)
    assert found.keys() == weights.keys()
    assert [name for name in found if not torch.equal(found[name], weights[name])] == []
    if step == 8:
        left = load_file(old / SHARDED / "model.safetensors")
        assert [name for name in left if not torch.equal(found[name], left[name])] == []
        exported, recorded = header(out), header(old / SHARDED / "model.safetensors")
        # The exported model has the settings of later versions, too.
        model = exported["__metadata__"].pop("model")
        assert model.items() >= recorded["__metadata__"].pop("model").items()
        assert exported == recorded


def header(file: Path) -> dict[str, Any]:
    """Read the JSON header of a safetensors file, in which the model is JSON, too."""
    data = file.read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found["__metadata__"]["model"] = json.loads(found["__metadata__"]["model"])
    return found


def test_export_for_hugging_face_equals_the_old_export(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ("export", str(SHARDED), "--to", "hf", "--out", str(tmp_path / "hf"))
    cuboid(old, monkeypatch, capsys, *command)
    before = old / SHARDED / "exports" / "step-00000008-hf"
    names = {file.name for file in before.iterdir()}
    assert {file.name for file in (tmp_path / "hf").iterdir()} == names
    for name in names - {"model.safetensors"}:
        found, expected = (
            json.loads((one / name).read_text()) for one in (tmp_path / "hf", before)
        )
        assert found == expected, name
    found, expected = (load_file(one / "model.safetensors") for one in (tmp_path / "hf", before))
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_old_checkpoints_are_listed_and_verified(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = cuboid(old, monkeypatch, capsys, "checkpoint", "ls", str(SHARDED)).splitlines()
    expected = (EXPECTED / "listing.txt").read_text().splitlines()
    assert len(listed) == len(expected) == 4
    for ours, theirs in zip(listed[2:], expected[2:], strict=True):
        step, *written, number, unit, loss = ours.split()[:6]
        expected_step, *expected_written, _, _, expected_loss = theirs.split()[:6]
        assert (step, written, loss) == (expected_step, expected_written, expected_loss)
        manifest = old / SHARDED / "checkpoints" / f"step-{int(step):08}" / "manifest.json"
        files = json.loads(manifest.read_bytes())["files"].values()
        size = float(number) * {"KiB": 2**10, "MiB": 2**20}[unit]
        assert size == pytest.approx(sum(file["bytes"] for file in files), rel=5e-3)
    assert "step-00000008" in cuboid(old, monkeypatch, capsys, "checkpoint", "verify", str(SHARDED))


def test_resume_auto_finds_the_old_run_by_the_path_of_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record has the absolute path of the config; the test replaces it by that of the copy."""
    folder = unpack(tmp_path / "here")
    record = folder / SHARDED / "statements.json"
    text, recorded = record.read_text(), '"config": "/home/user/example/sharded.py"'
    assert recorded in text
    record.write_text(text.replace(recorded, f'"config": {json.dumps(f"{folder}/sharded.py")}'))
    command = ("train", "sharded.py", "--gpus", "4", "--resume", "auto")
    (line,) = cuboid(folder, monkeypatch, capsys, *command).splitlines()
    assert line.startswith(f"{SHARDED} is finished at step 8"), "and nothing is started"


# The files that a run leaves

SHARED = ("environment.json", "resolved.json", "statements.json", "status.json", "tokenizer.json")


def keys_of(file: Path) -> set[str]:
    """Return all keys in a JSON file, or in any row of a log."""
    if file.suffix == ".jsonl":
        return {key for row in read_log(file).values() for key in key_paths(row)}
    return set(key_paths(json.loads(file.read_text())))


@pytest.mark.parametrize("name", [*SHARED, "log.jsonl"])
def test_files_of_a_new_run_have_the_old_keys(
    old: Path, sharded: Path, alone: Path, name: str
) -> None:
    sharded_now = (sharded / SHARDED, alone / "fresh-sharded")
    for before, now in ((SHARDED, sharded_now), (ALONE, (alone / ALONE, alone / "fresh-alone"))):
        expected = keys_of(old / before / name)
        assert expected, "the file has keys"
        for run in now:
            assert expected - keys_of(run / name) == set(), run


def test_new_run_has_the_old_files(old: Path, alone: Path) -> None:
    made_by_commands = {"exports", "evaluate-8-validation.json"}
    for before, now in ((SHARDED, "fresh-sharded"), (ALONE, "fresh-alone")):
        assert names_in(old / before) - made_by_commands - names_in(alone / now) == set()
    expected, found = (
        json.loads((run / "initial.json").read_text())
        for run in (old / ALONE, alone / "fresh-alone")
    )
    assert found.keys() == expected.keys()
    assert found["asked"] == expected["asked"] == str(SHARDED)


def test_tensorboard_has_the_old_curves(old: Path, sharded: Path) -> None:
    before = {file.name for file in (old / SHARDED).glob("events.*")}
    (file,) = before
    (new,) = {file.name for file in (sharded / SHARDED).glob("events.*")} - before
    expected = curves(old / SHARDED / file)
    assert expected
    assert expected - curves(sharded / SHARDED / new) == set()


def curves(file: Path) -> set[str]:
    """Return the tags in a TensorBoard file."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = loader.EventAccumulator(str(file))
    accumulator.Reload()
    return {*accumulator.Tags()["scalars"], *accumulator.Tags()["tensors"]}


def names_in(folder: Path) -> set[str]:
    """Return the file names, without time and process in those of TensorBoard's files."""
    return {
        "events.out.tfevents" if path.name.startswith("events.out.tfevents") else path.name
        for path in folder.iterdir()
    }


def test_new_run_has_the_old_settings(old: Path, sharded: Path) -> None:
    expected, found = (
        json.loads((path / "resolved.json").read_text())
        for path in (old / SHARDED, sharded / SHARDED)
    )
    assert changed_in(found, expected) == []


def changed_in(found: Any, expected: Any, path: str = "") -> list[str]:
    """Return the dotted keys of ``expected`` that are missing or differ."""
    if not isinstance(expected, dict):
        return [] if found == expected else [path]
    return [
        one
        for key, value in expected.items()
        for one in (
            changed_in(found[key], value, f"{path}.{key}") if key in found else [f"{path}.{key}"]
        )
    ]


def test_new_checkpoint_has_the_format_of_the_old_one(old: Path, sharded: Path) -> None:
    """Compares the files, the keys of JSON files, and name, type, shape and shards of tensors."""
    new, before = sharded / STEP_8, old / STEP_8
    assert {file.name for file in before.iterdir()} <= {file.name for file in new.iterdir()}
    for name in ("manifest.json", "training.json"):
        assert keys_of(before / name) - keys_of(new / name) == set(), name
    found, expected = (
        dcp.FileSystemReader(path).read_metadata().state_dict_metadata for path in (new, before)
    )
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert (sharded / f"{STEP_8}.aside").is_dir(), "the old one is kept beside the new one"


def test_validation_as_json_has_the_old_keys_and_settings(
    old: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("validate", "sharded.py", "--gpus", "4", "--json")
    found = json.loads(cuboid(old, monkeypatch, capsys, *command))
    expected = json.loads((EXPECTED / "validate.json").read_text())
    assert set(key_paths(expected)) - set(key_paths(found)) == set()
    ours, theirs = (one["configs"][0]["plan"] for one in (found, expected))
    for key in ("name", "gpus", "layout", "batch", "settings"):
        assert changed_in(ours[key], theirs[key]) == [], key
