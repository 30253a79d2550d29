"""Runs with initial weights: of every format, in every layout, and after a restart."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.data.batches.loader import load_batches
from engine.inout.export import ExportOptions, export, exporter
from engine.inout.import_model import import_model
from engine.inout.open_model import open_saved_model
from engine.plan import make_plan
from engine.runs.folder import RunFolder
from engine.runs.start_candidates import StartOptions
from engine.world.world import World
from models.config import GPTConfig
from tests.engine.inout.support import drawn, theirs, trained
from tests.support.jobs import TINY, Ended, Job, run, run_all

SIZES = GPTConfig(
    n_layer=2, n_head=4, n_embd=16, head_dim=4, n_inner=64, vocab_size=33, block_size=8
)
EXACT = ExportOptions(dtype=torch.float64, shard_bytes=9000)
LAYOUTS = {
    "2d": ("TENSOR_PARALLEL=4", "MODE=2d"),
    "pp1d": ("TENSOR_PARALLEL=2", "MODE=1d", "PIPELINE=2", "NUM_MICRO_BATCHES=2"),
    "zero3": ("BATCH_SIZE=1", "zero.stage=3"),
    "disk": (
        *("BATCH_SIZE=1", "zero.stage=3", "zero.offload=nvme", "zero.offload_params=nvme"),
        "zero.nvme_path=.",
    ),
}
DOUBLE = "precision=float64"
CUT_ROWS = ("2d", "disk")
STILL = ("optimizer.lr=1e-30", "optimizer.weight_decay=0.0", "MAX_STEPS=1", DOUBLE)
"""A run that ends with the weights it began with."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


def job(folder: Path, source: str | None, *overrides: str, **more: Any) -> Job:
    options = StartOptions(
        init_from=Path(source) if source else None,
        output=Path(more.pop("output", "run")),
        resume=more.pop("resume", "none"),
    )
    return Job(folder=folder, overrides=overrides, options=options, **more)


def weights(path: Path, sizes: GPTConfig = SIZES, **more: Any) -> None:
    model = trained(sizes, dtype=torch.float64, **more)
    export(model, exporter("safetensors"), EXACT, out=path, force=False)


def losses(folder: Path, output: str = "run") -> list[float]:
    lines = (folder / output / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def ended_with(folder: Path, output: str = "run") -> dict[str, Tensor]:
    return load_file(RunFolder(folder / output).weights)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def worked(*ended: Ended) -> str:
    """Return the output of rank 0 of a run that succeeded."""
    assert [one.error for one in ended] == [""] * len(ended), ended[0].err
    return ended[0].out


def test_first_loss_is_that_of_transformers_in_every_layout(folder: Path) -> None:
    model = theirs(SIZES).double()
    model.save_pretrained(folder / "hf", max_shard_size=9000)
    alone = job(folder, "hf", "MAX_STEPS=2", DOUBLE)
    worked(*run(alone))
    cut = [
        replace(
            alone, overrides=(*alone.overrides, *more), options=replace(alone.options, output=name)
        )
        for name, more in ((Path(name), LAYOUTS[name]) for name in LAYOUTS)
    ]
    for ended in run_all(cut, 4):
        assert "starting from the weights of hf\n" in worked(*ended)
    for name in LAYOUTS:
        for found, expected in zip(losses(folder, name), losses(folder), strict=True):
            assert found == pytest.approx(expected, rel=1e-12)

    settings = make_plan(folder / "tiny.py", gpus=1, environ={}).settings
    batches = load_batches(settings, data_size=1, cache=folder / "cache")
    ids, targets = batches.batch(1, 0, 0)
    with torch.no_grad():
        logits = model(ids).logits
    expected = float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    assert losses(folder)[0] == pytest.approx(expected, rel=1e-12)


def test_initial_weights_of_every_format_give_the_same_run(folder: Path) -> None:
    weights(folder / "x.safetensors")
    model = open_saved_model(folder / "x.safetensors")
    export(model, exporter("hf"), EXACT, out=folder / "hf", force=False)
    import_model(open_saved_model(folder / "hf"), folder / "ours")
    first = job(folder, "x.safetensors", *STILL, output="0")
    more = [
        job(folder, source, *STILL, output=str(number))
        for number, source in enumerate(("hf", "ours", "0", "0/checkpoints/step-00000001"), 1)
    ]
    for ended in run_all([first, *more]):
        worked(*ended)
    for number in range(5):
        assert same(ended_with(folder, str(number)), drawn(SIZES, dtype=torch.float64))
    recorded = json.loads((folder / "3" / "initial.json").read_text())
    assert recorded["asked"] == "0"
    assert recorded["path"] == str(folder / "0/checkpoints/step-00000001")


@contextlib.contextmanager
def nothing_whole(world: World) -> Iterator[None]:
    """Make every read of an unsharded tensor of a checkpoint fail."""
    with patch.object(SavedCheckpoint, "parameter", side_effect=AssertionError):
        yield


def test_each_rank_reads_only_its_shards_of_a_checkpoint(folder: Path) -> None:
    weights(folder / "x.safetensors")
    worked(*run(job(folder, "x.safetensors", *STILL, output="first")))
    cut = [
        job(folder, "first", *STILL, *LAYOUTS[name], output=name, planted=nothing_whole)
        for name in CUT_ROWS
    ]
    single = job(folder, "first", *STILL[:-1], output="single", planted=nothing_whole)
    for ended in (*run_all(cut, 4), run(single)):
        worked(*ended)
    expected = drawn(SIZES, dtype=torch.float64)
    for name in CUT_ROWS:
        assert same(ended_with(folder, name), expected)
    assert same(ended_with(folder, "single"), {n: tensor.float() for n, tensor in expected.items()})


def test_vocabulary_and_positions_may_differ_in_size(folder: Path) -> None:
    """Additional rows have the random values of a run without --init-from, in layouts that shard
    the rows, too."""
    weights(folder / "x.safetensors")
    more = ("model.vocab_size=38", "model.block_size=11", *STILL)
    fewer = ("model.vocab_size=32", *STILL)
    jobs = [
        job(folder, source, *overrides, *layout, output=f"{name} {size} {source}")
        for name, layout in (("alone", ()), *((name, LAYOUTS[name]) for name in CUT_ROWS))
        for size, overrides in (("more", more), ("fewer", fewer))
        for source in ("x.safetensors", *[None] * (name == "alone"))
    ]
    outputs = [worked(*ended) for ended in run_all(jobs[:4])]
    for ended in run_all(jobs[4:], 4):
        worked(*ended)
    assert outputs[0].splitlines()[:3] == [
        "starting from the weights of x.safetensors",
        "command line: model.vocab_size=38, and the saved model has 33 token ids: the last 5 start "
        "from random weights",
        "command line: model.block_size=11, and the saved model has 8 positions: the last 3 start "
        "from random weights",
    ]
    assert (
        "command line: model.vocab_size=32, and the saved model has 33 token ids: the last 1 are "
        "dropped"
    ) in outputs[2].splitlines()
    for name in ("alone", *CUT_ROWS):
        for size in ("more", "fewer"):
            found = ended_with(folder, f"{name} {size} x.safetensors")
            random = ended_with(folder, f"alone {size} None")
            for parameter, tensor in drawn(SIZES, dtype=torch.float64).items():
                rows = min(len(tensor), len(found[parameter]))
                assert torch.equal(found[parameter][:rows], tensor[:rows])
                assert torch.equal(found[parameter][rows:], random[parameter][rows:])


def test_other_architecture_is_rejected_with_every_difference(folder: Path) -> None:
    weights(folder / "x.safetensors", replace(SIZES, n_layer=3, n_inner=60, activation="gelu"))
    (ended,) = run(job(folder, "x.safetensors"))
    assert (ended.error, ended.out) == ("UserError", "")
    assert ended.err.splitlines() == [
        "--init-from=x.safetensors has another architecture than tiny.py:",
        "  tiny.py:5: model.n_layer=2; the saved model has n_layer=3",
        "  tiny.py: model.n_inner=64; the saved model has n_inner=60",
        "  tiny.py: model.activation='gelu_tanh'; the saved model has activation='gelu'",
    ]
    assert not (folder / "run").exists()


def test_path_without_weights_is_rejected(folder: Path) -> None:
    (ended,) = run(job(folder, "nowhere"))
    assert (ended.error, ended.out) == ("UserError", "")
    assert ended.err.startswith(
        "nowhere contains no model; give a run, a checkpoint, a Hugging Face "
    )
    assert not (folder / "run").exists()


def test_corrupt_checkpoint_is_rejected_as_initial_weights(folder: Path) -> None:
    worked(*run(job(folder, None, output="first")))
    checkpoint = CheckpointDirectory(RunFolder(folder / "first").checkpoints).folder(4)
    (shard,) = checkpoint.glob("*.distcp")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    for ended in run(job(folder, "first", *LAYOUTS["zero3"]), 2):
        assert ended.error == "UserError"
        if ended.err:
            assert ended.err == (
                "first/checkpoints/step-00000004 is corrupt: "
                f"{shard.name} was changed: its SHA-256 differs; restore it, or use other weights\n"
            )


def test_restart_from_step_0_uses_the_same_initial_weights(folder: Path) -> None:
    """The restart precedes the first checkpoint, and the initial run has newer checkpoints by
    then."""
    worked(*run(job(folder, None, "optimizer.lr=0.1", DOUBLE, output="first")))
    directory = CheckpointDirectory(RunFolder(folder / "first").checkpoints)
    directory.folder(4).rename(folder / "later")
    begins = job(folder, "first", *STILL, launch="1")
    expected = dict(open_saved_model(folder / "first").read_tensors())
    assert run(replace(begins, dies=1)) == []
    (folder / "later").rename(directory.folder(4))
    copies = {name: folder / name for name in ("again", "auto", "other", "changed")}
    for path in copies.values():
        shutil.copytree(folder / "run", path)

    def again(name: str, source: str | None, **more: Any) -> Job:
        return job(folder, source, *STILL, output=name, **more)

    output = worked(*run(again("again", "first", launch="1")))
    assert "starting from the weights of " + str(directory.folder(2)) + ", of step 2" in output
    assert same(ended_with(folder, "again"), expected)
    worked(*run(again("auto", None, resume="auto")))  # by someone who says less
    assert same(ended_with(folder, "auto"), expected)
    worked(*run(again("other", "first/checkpoints/step-00000004", resume="auto")))
    assert not same(ended_with(folder, "other"), expected)

    file = directory.folder(2) / "training.json"
    file.write_text(file.read_text() + "\n")
    (ended,) = run(again("changed", "first", launch="1"))
    assert (ended.error, ended.err) == (
        "UserError",
        f"{directory.folder(2)} was changed or deleted since changed started from it, and the run "
        "has no checkpoint to resume from; choose another --output\n",
    )


def test_checkpoint_takes_precedence_over_initial_weights(folder: Path) -> None:
    weights(folder / "x.safetensors")
    begins = job(folder, "x.safetensors", launch="1")
    assert run(replace(begins, dies=3)) == []
    (folder / "x.safetensors").rename(folder / "away")  # which need not be there any more
    left = folder / "run" / ".model.safetensors.17.tmp"  # of a process that was killed
    left.touch()
    lines = worked(*run(begins)).splitlines()
    assert not left.exists()
    (folder / "away").rename(folder / "x.safetensors")
    assert lines[:2] == [
        "resuming from run/checkpoints/step-00000002",
        "--init-from=x.safetensors is ignored: the run resumes from a checkpoint",
    ]
    worked(*run(job(folder, "x.safetensors", output="through")))
    assert same(ended_with(folder), ended_with(folder, "through"))
