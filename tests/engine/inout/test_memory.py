"""Memory of import and export: that of the largest tensor, for any number of tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.save import save
from engine.checkpoint.state_dict import model_tensors
from engine.inout.export import ExportOptions, export, exporter
from engine.inout.saved_model import shapes_of
from engine.inout.tensor_writers import total_bytes
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.context import ParallelContext
from tests.engine.inout.support import trained
from tests.support.checkpoints import layout_of, training_at
from tests.support.training import TrainingCase
from tests.support.worlds import run_world

SIZES = GPTConfig(
    n_layer=16, n_head=4, n_embd=256, head_dim=64, n_inner=1024, vocab_size=900, block_size=64
)
# In a process of its own, which says what it holds beyond what it began with: a small model first,
# so that all is imported that will be.
CODE = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist

from engine.checkpoint.save import save
from engine.checkpoint.state_dict import model_tensors
from engine.discover import module_names
from engine.inout.export import EXPORTERS_PACKAGE, ExportOptions, export, exporter
from engine.inout.import_model import import_model
from engine.inout.open_model import open_saved_model
from models import load_state
from models.chunks import ModelChunks
from models.gpt import GPT
from models.parallel.context import ParallelContext

torch.set_num_threads(1)
def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))

def peak(work):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before

small, large, run, old = map(Path, sys.argv[1:])
options = ExportOptions(dtype=torch.float32, shard_bytes=10**9)
for path in (small, large):
    ours = path.with_name(path.name + "-ours")
    peaks = {"import": peak(lambda: import_model(open_saved_model(path), ours))}
    for name in module_names(EXPORTERS_PACKAGE):
        peaks[name] = peak(
            lambda: export(open_saved_model(ours), exporter(name), options, out=None, force=False)
        )
peaks["bin"] = peak(lambda: import_model(open_saved_model(old), old.with_name("from-bin")))
model = open_saved_model(run)
next(model.read_tensors())
peaks["checkpoint"] = peak(lambda: export(model, exporter("pt"), options, out=None, force=False))
f32 = torch.float32
parallel = ParallelContext.single_device(torch.device("cpu"), dtype=f32, compute=f32)
saved = open_saved_model(large.with_name(large.name + "-ours"))
chunks = ModelChunks([GPT(saved.config, parallel)])
chunks.initialise(1)
peaks["init-from"] = peak(lambda: load_state.load_state(chunks, saved.read_tensors()))
print(json.dumps(peaks))
"""


def save_large(rank: int, size: int, path: Path) -> None:
    """Save a checkpoint of the large model."""
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float32, compute=torch.float32
    )
    model = ModelChunks([GPT(SIZES, part)])
    training = training_at(1, settings={"model": asdict(SIZES)})
    save(
        CheckpointDirectory(path),
        model_tensors(model),
        training,
        layout=layout_of(TrainingCase()),
        group=dist.group.WORLD,
    )


def old_form(there: Path, folder: Path) -> None:
    """Write the model of a folder as a pickle to another folder."""
    folder.mkdir()
    (folder / "config.json").write_bytes((there / "config.json").read_bytes())
    torch.save(load_file(there / "model.safetensors"), folder / "pytorch_model.bin")


def test_import_and_export_keep_at_most_a_few_tensors_in_memory(tmp_path: Path) -> None:
    run_world(1, save_large, tmp_path / "run" / "checkpoints")
    options = ExportOptions(dtype=torch.float32, shard_bytes=10**9)
    for name, model in (("small", trained()), ("large", trained(SIZES))):
        export(model, exporter("hf"), options, out=tmp_path / name, force=False)
    old_form(tmp_path / "large", tmp_path / "bin")
    shapes = shapes_of(SIZES)
    whole = total_bytes(shapes, options.dtype)
    largest = max(total_bytes({name: shape}, options.dtype) for name, shape in shapes.items())
    assert whole > 45 * largest
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            CODE,
            *(str(tmp_path / n) for n in ("small", "large", "run", "bin")),
        ],
        # Large pieces go back to the system at once, as those of large models do
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = json.loads(done.stdout)
    assert {*peaks} == {"import", "hf", "pt", "safetensors", "checkpoint", "init-from", "bin"}
    assert max(peaks.values()) < 3 * largest + 10e6, peaks
