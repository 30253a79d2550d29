"""The effect of each setting: a probe that distinguishes two of its values by behaviour, not by
recorded settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest.mock import patch

import torch

from engine.plan import Plan, make_plan
from engine.runs.metrics import step_metrics
from engine.train import total_steps
from engine.training.build import choose_run_matmul
from engine.training.pipeline import Pipeline
from engine.training.step import DivergedError, NonFiniteError, StepResult
from engine.world.world import World
from models.gpt import Block
from tests.support.jobs import Job
from tests.support.jobs import run as run_job
from tests.support.runs import build_empty, open_run, pretended

Overrides = tuple[str, ...]

CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 8
MAX_STEPS = 4
model = dict(n_layer=4, n_head=4, n_embd=16, vocab_size=40)
data = dict(type="synthetic")
optimizer = dict(lr=0.05)
log = dict(tensorboard=False)
eval = dict(every=0)
"""
TEXT = "One text, of which some is kept to validate with. " * 40
T = TypeVar("T")
HELD_OUT = "some text to validate with. " * 40
OTHER = "Another. " * 200


@dataclass(frozen=True, kw_only=True)
class SettingEffect:
    """``probe`` returns another result once ``change`` is added to ``given``."""

    change: str
    probe: Callable[[Path, Overrides], Any]
    given: Overrides = ()


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """Replaces a world of one rank for the choice of a library."""

    plan: Plan
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def run_on_rank_0(self, task: Callable[[], T]) -> T:
        return task()


# Probes of a run in this process


def training(config: Path, overrides: Overrides) -> list[float]:
    """Return losses and norms of four steps, and of a validation."""
    run = open_run(0, 1, config, overrides, steps=4)
    outcomes = [run.step(step) for step in range(1, 5)]
    return [*(o.loss for o in outcomes), *(o.grad_norm for o in outcomes), run.validate().loss]


def micro_batches(config: Path, overrides: Overrides) -> list[torch.Size]:
    run = open_run(0, 1, config, overrides)
    return [ids.shape for ids, _ in run.micro_batches(1)]


def first_ids(config: Path, overrides: Overrides) -> list[Any]:
    """Return the token ids that a step reads."""
    return [ids.tolist() for ids, _ in open_run(0, 1, config, overrides).micro_batches(1)]


def held_out_ids(config: Path, overrides: Overrides) -> list[Any]:
    """Return the first token ids that a validation reads."""
    ids, _ = open_run(0, 1, config, overrides).batches.validation.batch(0, 0)
    found: list[Any] = ids.tolist()
    return found


def scales(config: Path, overrides: Overrides) -> list[float]:
    """Return the loss scale after each of four steps; fewer if it cannot be reduced further."""
    run = open_run(0, 1, config, ("precision=fp16", *overrides))
    assert run.stepper.loss_scale is not None
    scales = []
    with contextlib.suppress(NonFiniteError):
        for step in range(1, 5):
            run.step(step)
            scales.append(run.stepper.loss_scale.scale)
    return scales


def skips(config: Path, overrides: Overrides) -> list[bool]:
    """Return which of eight steps are skipped; fewer if too many in a row are."""
    run, skipped = open_run(0, 1, config, overrides, steps=8), list[bool]()
    with contextlib.suppress(DivergedError):
        for step in range(1, 9):
            skipped.append(run.step(step).skipped)
    return skipped


def overflowing(config: Path, overrides: Overrides) -> list[float]:
    """Return the loss scales from a scale at which all gradients overflow."""
    return scales(config, ("loss_scale.initial=1e9", "loss_scale.growth_interval=100", *overrides))


def statistics_of(config: Path, overrides: Overrides) -> list[bool]:
    """Return which of two steps have statistics."""
    run = open_run(0, 1, config, overrides)
    return [run.step(step).statistics is not None for step in (1, 2)]


def accelerator_seconds(config: Path, overrides: Overrides) -> float | None:
    """Return the seconds of the reference accelerator that a row of the log has."""
    run = open_run(0, 1, config, overrides)
    result = StepResult(loss=1.0, grad_norm=1.0, memory_bytes=(1,), stop=False)
    return step_metrics(run, 1, result, seconds=1.0, validation=None).accelerator_seconds


def steps(config: Path, overrides: Overrides) -> int:
    run = open_run(0, 1, config, overrides)
    return total_steps(run.plan, run.batches)


def blocks_run(config: Path, overrides: Overrides) -> int:
    """Count the forward passes of blocks in a step."""
    run, healthy, calls = open_run(0, 1, config, overrides), Block.forward, []

    def forward(self: Block, *x: Any) -> Any:
        calls.append(self)
        return healthy(self, *x)

    with patch.object(Block, "forward", forward):
        run.step(1)
    return len(calls)


MATMULS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


def matmuls(config: Path, overrides: Overrides) -> int:
    """Count the matmuls of a step, including recomputed ones."""
    calls: list[Any] = []
    run = open_run(0, 1, config, overrides)

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kw: Any = None) -> Any:
            calls.extend([op] * (op in MATMULS))
            return op(*args, **(kw or {}))

    with Count():
        run.step(1)
    return len(calls)


def library(config: Path, overrides: Overrides) -> str:
    """Return the library of a run's matmuls."""
    plan = make_plan(config, gpus=1, overrides=overrides, environ={})
    return choose_run_matmul(cast(World, Chooser(plan=plan)))


def loss_chunks(config: Path, overrides: Overrides) -> int:
    model = open_run(0, 1, config, overrides).model
    return len(list(model[0].head.chunks(32, 32)))


def determinism(config: Path, overrides: Overrides) -> bool:
    open_run(0, 1, config, overrides)
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    return is_deterministic


def compiled(config: Path, overrides: Overrides) -> bool:
    block = open_run(0, 1, config, overrides).model[0].h["0"]
    return block._compiled_call_impl is not None


def validations(config: Path, overrides: Overrides) -> tuple[list[bool], int]:
    """Return after which of four steps a validation runs, and on how many samples."""
    run = open_run(0, 1, config, overrides)
    held_out = run.batches.validation.samples
    return [run.validates_after(step, last=step == 4) for step in range(1, 5)], held_out


def tokenised_in(config: Path, overrides: Overrides) -> list[str]:
    """Return the folder in which files appear when text is tokenized."""
    folder = config.parent
    before = set(folder.rglob("*.*"))
    open_run(0, 1, config, overrides)
    return sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*.*")) - before)


# Probes of one rank of eight, which sends to nobody


def plan_of(config: Path, overrides: Overrides) -> Plan:
    return make_plan(config, gpus=8, overrides=("BATCH_SIZE=8", *overrides), environ={})


def pieces(config: Path, overrides: Overrides) -> list[tuple[str, torch.Size]]:
    """Return names and shapes of the parameters of rank 0."""
    named = build_empty(plan_of(config, overrides), 0).named_parameters()
    return [(name, parameter.shape) for name, parameter in named]


def calls(config: Path, overrides: Overrides) -> dict[Any, int]:
    """Return the collectives of rank 0 in the forward and backward pass of a micro-batch."""
    plan = plan_of(config, overrides)
    with pretended(0, 8):
        model = build_empty(plan, 0)
        ids = torch.empty(plan.micro_batch, 8, dtype=torch.int64, device="meta")
        chunk = model[0]
        y = chunk(chunk.embed(ids), 8)
        y.backward(torch.empty_like(y))
        return dict(model.parallel.axes["world"].traffic.calls)


def order(config: Path, overrides: Overrides) -> list[Any]:
    """Return the actions of the first of two stages in a step."""
    plan = plan_of(config, ("PIPELINE=2", "NUM_MICRO_BATCHES=4", *overrides))
    model = build_empty(plan, 0)
    pipeline = Pipeline(model, model.parallel.axes["pipeline"], plan.settings.schedule)
    return pipeline.plan(4, True)


def homes(config: Path, overrides: Overrides) -> tuple[object, bool, bool]:
    """Return the device of the weights between uses, their bytes in memory, and whether a disk
    stores them."""
    plan = plan_of(config, overrides)
    part = build_empty(plan, 0).parallel
    return part.offload_device, part.zero.caches_shards, plan.settings.zero.offload == "nvme"


# A whole run


def files(config: Path, overrides: Overrides) -> tuple[list[str], str]:
    """Return the files of the run folder, and the steps that the run reports."""
    folder = config.parent / f"run{abs(hash(overrides))}"
    folder.mkdir(exist_ok=True)
    (folder / "tiny.py").write_text(CONFIG)
    (ended,) = run_job(Job(folder=folder, overrides=overrides))
    assert ended.error == "", ended.err
    steps = [line.split("|")[0] for line in ended.out.splitlines() if line.startswith("step ")]
    names = {path.relative_to(folder).parts[0] for path in folder.iterdir()}
    left = [*folder.glob("runs/*/*"), *folder.glob("runs/*/checkpoints/*")]
    return sorted(names | {path.name for path in left}), "".join(steps)
