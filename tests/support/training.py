"""A small GPT trained for a few steps in any layout, and its gathered tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from engine.config.sections.loss import LossScaleSettings
from engine.data.batches.loader import Batch
from engine.layout import Layout
from engine.optim.optimizer import ResidentOptimizer
from engine.training.gradients import GradientReducer
from engine.training.loss_scale import LossScale
from engine.training.pipeline import Pipeline
from engine.training.step import Stepper
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.collectives import Axis, Traffic
from models.parallel.compilation import axes_of_compiled_code
from models.parallel.context import ParallelContext
from models.parallel.kernels import DeviceKernels
from models.parallel.registry import modes
from models.parallel.zero import Zero
from models.stage_split import chunks_of, split_balanced
from tests.support.loss_kernels import LIKE_A_GPU
from tests.support.offloading import open_offloaded

LR, EPS = 1e-2, 1e-4
"""AdamW at 1e-8 turns rounding into steps where gradients are zero in theory (the key bias)."""
GENTLE_LR, GENTLE_EPS = 0.2, 0.1
"""Steps nearly in proportion to gradients. In half precision, or of few samples, the sign of one
may be a matter of rounding, and a step of Adam is a sign."""


@dataclass(frozen=True, kw_only=True)
class TrainingCase:
    """A layout, a model and its training.

    Attributes:
        samples: per step, over all ranks and rounds.
        ignored: number of targets at the start that are padding: some ranks have no other target.
        micro_batches: per rank and round.
        steps: the second starts from updated parameters and optimizer states.
        scale: initial loss scale of fp16.
        disk: state that is offloaded to a disk; "weights" includes the optimizer states.
        gpu_head: compute the head as on a GPU, with its padding and its order of operations.
        compiled: backend of torch.compile.
    """

    mode: str = "serial"
    tensor: int = 1
    depth: int = 1
    data: int = 1
    pipeline: int = 1
    chunks: int = 1
    schedule: str = "1f1b"
    zero: int = 0
    zero_depth: bool = False
    offload: bool = False
    disk: Literal["states", "weights"] | None = None
    layers: int = 2
    accumulation: int = 1
    micro_batches: int = 1
    tied: bool = True
    checkpoint: bool | Literal["selective"] = False
    keep_gathers: bool = False
    context: Literal["gather", "ring"] = "gather"
    dtype: torch.dtype = torch.float32
    compute: torch.dtype | None = None
    samples: int = 12
    length: int = 10
    ignored: int = 37
    steps: int = 2
    clip: float | None = 0.5
    loss_chunk: int | None = 5
    dropout: float = 0.0
    heads: int | None = None
    inner: int = 28
    scale: float = 2.0**12
    gentle: bool = False
    init_residual: Literal["both", "mlp", "none"] = "both"
    init_positions: Literal["normal", "zero"] = "normal"
    scale_embedding: bool = False
    gpu_head: bool = False
    compiled: str | None = None

    @property
    def layout(self) -> Layout:
        return Layout(
            mode=modes()[self.mode],
            tensor=self.tensor,
            pipeline=self.pipeline,
            data=self.data,
            depth=self.depth,
        )

    @property
    def config(self) -> GPTConfig:
        """Model config with few common divisors: n_head x head_dim is not n_embd, the vocabulary is
        odd, and the MLP has uneven shards."""
        parts = prod(self.layout.tensor_axes[axis] for axis in self.layout.mode.inner.hidden)
        return GPTConfig(
            n_layer=self.layers,
            n_head=self.heads or (12 if 12 % parts == 0 else parts),
            n_embd=20,
            head_dim=2,
            n_inner=self.inner,
            vocab_size=29,
            block_size=16,
            embd_pdrop=self.dropout,
            resid_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            tie_embeddings=self.tied,
            checkpoint=self.checkpoint,
            init_residual=self.init_residual,
            init_positions=self.init_positions,
            scale_embedding=self.scale_embedding,
        )

    @property
    def lr(self) -> float:
        return GENTLE_LR if self.gentle or self.compute else LR

    @property
    def eps(self) -> float:
        return GENTLE_EPS if self.gentle or self.compute else EPS

    @property
    def name(self) -> str:
        """Id of the case in pytest's output."""
        depth = f"d{self.depth}" if self.layout.mode.uses_depth else ""
        flags = ["tied" if self.tied else "untied"]
        if self.checkpoint:
            flags.append("selective" if self.checkpoint == "selective" else "checkpoint")
        flags += ["keep"] * self.keep_gathers + ["ring"] * (self.context == "ring")
        if (self.samples, self.length) != (12, 10):
            flags.append(f"{self.samples}x{self.length}")
        flags += [f"inner{self.inner}"] * (self.inner != 28)
        flags += [f"residual-{self.init_residual}"] * (self.init_residual != "both")
        flags += ["zero-positions"] * (self.init_positions == "zero")
        flags += ["scaled-embedding"] * self.scale_embedding
        flags += ["gpu-head"] * self.gpu_head
        flags += [f"dropout{self.dropout}"] * (self.dropout > 0)
        flags += [f"compiled-{self.compiled}"] * bool(self.compiled)
        where = f"{self.mode}x{self.tensor}{depth}-dp{self.data}-acc{self.accumulation}"
        if self.pipeline > 1:
            where += f"-pp{self.pipeline}x{self.chunks}-{self.schedule}"
        if self.micro_batches > 1:
            where += f"-m{self.micro_batches}"
        if self.zero:
            where += f"-zero{self.zero}" + "-over-depth" * self.zero_depth
            where += "-offload" * self.offload
            where += f"-{self.disk}-on-disk" if self.disk else ""
        return "-".join([where, *flags, str(self.compute or self.dtype).removeprefix("torch.")])

    @property
    def alone(self) -> TrainingCase:
        """The same training in one process: without sharding, padding, accumulation or
        recomputation."""
        whole = TrainingCase(heads=self.config.n_head, loss_chunk=None)
        model = "layers tied dtype compute dropout inner"
        model += " init_residual init_positions scale_embedding"
        course = "samples length ignored steps clip scale gentle"
        shared = f"{model} {course}".split()
        return replace(whole, **{name: getattr(self, name) for name in shared})


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Values by step, and full parameters by name. ``skipped``: steps in which fp16 overflowed."""

    losses: list[float]
    norms: list[float]
    parameters: dict[str, Tensor]
    skipped: int = 0


@cache
def process_group(ranks: tuple[int, ...]) -> dist.ProcessGroup | None:
    """Return the group of these ranks, created once per world; all ranks call this in the same
    order."""
    group: dist.ProcessGroup | None = dist.new_group(list(ranks)) if len(ranks) > 1 else None
    return group


def axes_by_name(layout: Layout) -> dict[str, tuple[str, ...]]:
    """Map the name of each axis of a world to the axes of the layout along which it runs."""
    tensor_axes = tuple(layout.tensor_axes)
    single = {axis: (axis,) for axis in ("data", "pipeline", *tensor_axes)}
    return {**single, "tensor": tensor_axes, "world": tuple(layout.axes)}


def open_axes(layout: Layout, rank: int, traffic: Traffic) -> dict[str, Axis]:
    """Return this rank's axes over new torch groups."""
    axes = {}
    for name, along in axes_by_name(layout).items():
        for ranks in layout.groups(*along):
            group = process_group(tuple(ranks))
            if rank in ranks:
                index, size = ranks.index(rank), len(ranks)
                axes[name] = Axis(name=name, size=size, index=index, group=group, traffic=traffic)
    return axes


def open_partition(run: TrainingCase, rank: int, traffic: Traffic | None = None) -> ParallelContext:
    axes, mode = open_axes(run.layout, rank, traffic or Traffic()), run.layout.mode
    shared = mode.zero_axes(run.zero, depth=run.zero_depth)
    return ParallelContext(
        mode=mode,
        axes=axes,
        zero=Zero(stage=run.zero, axes=tuple(axes[axis] for axis in shared)),
        dtype=run.dtype,
        compute=run.compute or run.dtype,
        keep_gathers=run.keep_gathers,
        context=run.context,
        kernels=LIKE_A_GPU if run.gpu_head else DeviceKernels(),
        offload_device=torch.device("cpu") if run.offload or run.disk else None,
    )


def build(run: TrainingCase, parallel: ParallelContext, seed: int = 1) -> ModelChunks:
    stages = split_balanced([1.0] * run.layers, run.pipeline * run.chunks)
    model = ModelChunks(
        [
            GPT(run.config, parallel, layers=layers, loss_chunk=run.loss_chunk)
            for layers in chunks_of(stages, parallel.axes["pipeline"].index, run.pipeline)
        ],
        stages,
    )
    model.initialise(seed)
    if run.compiled is not None:
        for chunk in model:
            chunk.compile_blocks(deferred=run.schedule == "zero_bubble", backend=run.compiled)
    return model


def samples(run: TrainingCase, step: int) -> Batch:
    """Return the global batch of a step, the same for every layout."""
    draw = np.random.default_rng([7, step])
    ids = torch.from_numpy(draw.integers(0, run.config.vocab_size, (run.samples, run.length + 1)))
    targets = ids[:, 1:].clone()
    targets.flatten()[: run.ignored] = -100
    return ids[:, :-1].contiguous(), targets


def rounds(run: TrainingCase, batch: Batch, index: int) -> list[Batch]:
    """Return the micro-batches of data-parallel rank ``index``."""
    share, rest = divmod(run.samples, run.data * run.accumulation * run.micro_batches)
    assert not rest, "micro-batches are equal"
    starts = [
        ((turn * run.data + index) * run.micro_batches + number) * share
        for turn in range(run.accumulation)
        for number in range(run.micro_batches)
    ]
    return [(batch[0][start : start + share], batch[1][start : start + share]) for start in starts]


def gathered(model: ModelChunks, tensors: dict[str, Tensor], world: int) -> dict[str, Tensor]:
    """Assemble full tensors from the shards of all ranks: NaN for an entry that no rank has. Fail
    if ranks with the same shard have different bits."""
    boxes = model.shards()
    # Arrays: torch would pickle each tensor as a file of its own, for most of a world's time.
    pieces = {name: (boxes[name], tensor.detach().numpy()) for name, tensor in tensors.items()}
    everyone = [pieces] * world
    if world > 1:
        dist.all_gather_object(everyone, pieces)
    whole: dict[str, Tensor] = {}
    for name, (theirs, array) in ((name, held[name]) for held in everyone for name in held):
        piece = torch.from_numpy(array)
        if name not in whole:
            whole[name] = piece.new_full(theirs.shape, torch.nan)
        full = whole[name]
        target, source = full[theirs.slices], piece[theirs.valid_slices]
        if not target.isnan().all() and not torch.equal(target, source):
            source = torch.full_like(source, torch.nan)
        full[theirs.slices] = source
    return whole


def build_adamw(run: TrainingCase, model: ModelChunks) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.named_parameters(), lr=run.lr, eps=run.eps, weight_decay=0.1)


def make_stepper(run: TrainingCase, model: ModelChunks, world: Axis) -> Stepper:
    fp16 = run.compute == torch.float16
    return Stepper(
        model=model,
        pipeline=Pipeline(model, model.parallel.axes["pipeline"], run.schedule),
        optimizer=ResidentOptimizer(build_adamw(run, model), model.named_parameters()),
        gradients=GradientReducer(model),
        world=world,
        seed=3,
        rounds=run.accumulation,
        clip_grad_norm=run.clip,
        loss_scale=LossScale(LossScaleSettings(initial=run.scale)) if fp16 else None,
    )


def train(rank: int, size: int, run: TrainingCase) -> TrainingResult:
    """Train ``run.steps`` AdamW steps in a world of as many ranks as the layout has."""
    assert size == run.layout.gpus, f"{run.layout.gpus} ranks wanted"
    with open_training(run, rank) as (model, stepper), axes_of_compiled_code(model.parallel.axes):
        return train_model(run, model, stepper)


@contextmanager
def open_training(run: TrainingCase, rank: int) -> Iterator[tuple[ModelChunks, Stepper]]:
    """Build the model and the stepper of a rank, with a disk if the case has one."""
    parallel = open_partition(run, rank)
    world = parallel.axes["world"]
    if run.disk is None:
        model = build(run, parallel)
        yield model, make_stepper(run, model, world)
        return
    with open_offloaded(rank, weights=run.disk == "weights") as offloaded:
        model = build(run, replace(parallel, weight_storage=offloaded.weights))
        streamed = offloaded.optimizer(build_adamw(run, model))
        yield model, replace(make_stepper(run, model, world), optimizer=streamed)


def train_model(run: TrainingCase, model: ModelChunks, stepper: Stepper) -> TrainingResult:
    """Run the steps of ``train`` on a model."""
    parallel, losses, norms = model.parallel, list[float](), list[float]()
    for step in range(1, run.steps + 1):
        batch = samples(run, step)
        count = int((batch[1] != -100).sum())
        shares = rounds(run, batch, parallel.axes["data"].index)
        outcome = stepper.run(step, shares, targets=count, lr=run.lr)
        losses.append(outcome.loss)
        norms.append(outcome.grad_norm)
    pieces = {name: parallel.read(parameter) for name, parameter in model.named_parameters()}
    parameters = gathered(model, pieces, run.layout.gpus)
    skipped = stepper.loss_scale.skipped if stepper.loss_scale else 0
    return TrainingResult(losses=losses, norms=norms, parameters=parameters, skipped=skipped)


def train_all(rank: int, size: int, runs: list[TrainingCase]) -> list[TrainingResult]:
    """Train several cases in one world; rank 0 returns the results."""
    results = [train(rank, size, run) for run in runs]
    return results if rank == 0 else []


def differences(result: TrainingResult, reference: TrainingResult) -> dict[str, float]:
    """Return ||a - b|| / ||b|| of every parameter, and of losses and gradient norms over the
    steps."""
    ours, theirs = whole_record(result), whole_record(reference)
    assert ours.keys() == theirs.keys()
    return {name: float((ours[name] - b).norm() / b.norm()) for name, b in theirs.items()}


def whole_record(result: TrainingResult) -> dict[str, Tensor]:
    """Return all compared values of a training, in float64."""
    numbers = {"losses": result.losses, "gradient norms": result.norms}
    record = {name: torch.tensor(some, dtype=torch.float64) for name, some in numbers.items()}
    return record | {name: tensor.double() for name, tensor in result.parameters.items()}


def assert_same(result: TrainingResult, reference: TrainingResult, tolerance: float) -> None:
    """Check that every difference is within ``tolerance``; NaN is not."""
    errors = differences(result, reference)
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not wrong, f"relative differences beyond {tolerance:g}: {wrong}"
