"""A small GPT trained for a few steps in any layout, and its tensors gathered whole again."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from engine.gradients import GradientSum
from engine.layout import Layout
from engine.step import Stepper
from models.gpt import GPT
from models.parallel.collectives import Axis, Traffic
from models.parallel.layers import initialise, named_boxes
from models.parallel.partition import Partition
from models.parallel.registry import modes
from models.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Run:
    """A layout and what to train in it."""

    mode: str = "serial"
    tensor: int = 1
    depth: int = 1
    data: int = 1
    accumulation: int = 1
    tied: bool = True
    checkpoint: bool = False
    keep_gathers: bool = False
    dtype: torch.dtype = torch.float32
    compute: torch.dtype | None = None
    samples: int = 8
    length: int = 12
    steps: int = 5
    clip: float | None = 1.0
    loss_chunk: int | None = 5
    ignored: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return Layout(mode=modes()[self.mode], tensor=self.tensor, data=self.data, depth=self.depth)


def open_axes(layout: Layout, rank: int, size: int, traffic: Traffic) -> dict[str, Axis]:
    """Axes over the first ``layout.gpus`` ranks of the default group, by torch's own new_group."""
    own = tuple(layout.tensor_axes)
    wanted = {axis: (axis,) for axis in ("data", "pipeline", *own)}
    wanted |= {"tensor": own, "world": tuple(layout.axes)}
    axes = {}
    for name, along in wanted.items():
        for ranks in layout.groups(*along) if along else [[r] for r in range(layout.gpus)]:
            group = dist.new_group(ranks) if len(ranks) > 1 else None
            if rank in ranks:
                axes[name] = Axis(
                    name=name,
                    size=len(ranks),
                    index=ranks.index(rank),
                    group=group,
                    traffic=traffic,
                )
    return axes


def small(run: Run) -> Sizes:
    sizes = {"n_layer": 2, "n_head": 6, "n_embd": 24, "head_dim": 4, "n_inner": 48}
    sizes |= {"vocab_size": 29, "block_size": 16} | run.sizes
    return Sizes(**sizes, tie_embeddings=run.tied, checkpoint=run.checkpoint)


def build(run: Run, axes: dict[str, Axis], seed: int = 1) -> GPT:
    compute = run.compute or run.dtype
    part = Partition(
        mode=run.layout.mode,
        axes=axes,
        dtype=run.dtype,
        compute=compute,
        keep_gathers=run.keep_gathers,
    )
    model = GPT(small(run), part, loss_chunk=run.loss_chunk)
    initialise(model, seed)
    return model


def samples(run: Run, step: int) -> tuple[Tensor, Tensor]:
    """The global batch of a step, the same for every layout."""
    draw = np.random.default_rng([7, step])
    ids = torch.from_numpy(draw.integers(0, small(run).vocab_size, (run.samples, run.length + 1)))
    targets = ids[:, 1:].clone()
    targets.flatten()[: run.ignored] = -100
    return ids[:, :-1].contiguous(), targets


def gathered(model: GPT, tensors: dict[str, Tensor], layout: Layout, rank: int) -> dict[str, Tensor]:
    """Whole tensors from the pieces of all ranks, placed by their boxes alone."""
    boxes = named_boxes(model)
    pieces = [(boxes[name], name, tensor.detach()) for name, tensor in tensors.items()]
    everyone: list[object] = [None] * layout.gpus
    if layout.gpus > 1:
        group = dist.new_group(list(range(layout.gpus)))
        dist.all_gather_object(everyone, pieces, group=group)
    else:
        everyone = [pieces]
    whole: dict[str, Tensor] = {}
    for ranks in everyone:
        for box, name, tensor in ranks:  # type: ignore[attr-defined]
            full = whole.setdefault(name, torch.full(box.shape, torch.nan, dtype=tensor.dtype))
            full[box.slices] = tensor[box.valid]
    return whole


def train(rank: int, size: int, run: Run) -> dict[str, object] | None:
    """Losses, gradient norms and whole parameters after ``run.steps`` AdamW steps. Ranks beyond
    the layout return None."""
    layout, traffic = run.layout, Traffic()
    axes = open_axes(layout, rank, size, traffic)
    if rank >= layout.gpus:
        if layout.gpus > 1:
            dist.new_group(list(range(layout.gpus)))
        return None
    model = build(run, axes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4, weight_decay=0.1)
    stepper = Stepper(
        model=model,
        optimizer=optimizer,
        gradients=GradientSum(model),
        world=axes["world"],
        seed=3,
        clip_grad_norm=run.clip,
    )
    losses, norms = [], []
    share = run.samples // run.data // run.accumulation
    for step in range(1, run.steps + 1):
        ids, targets = samples(run, step)
        rounds = []
        for turn in range(run.accumulation):
            start = (turn * run.data + axes["data"].index) * share
            rounds.append((ids[start : start + share], targets[start : start + share]))
        count = int((targets != -100).sum())
        outcome = stepper.run(step, rounds, targets=count, lr=1e-2)
        losses.append(outcome.loss)
        norms.append(outcome.grad_norm)
    parameters = gathered(model, dict(model.named_parameters()), layout, rank)
    return {"losses": losses, "norms": norms, "parameters": parameters, "traffic": traffic}


def train_all(rank: int, size: int, runs: list[Run]) -> list[dict[str, object] | None]:
    """One world serves many runs."""
    return [train(rank, size, run) for run in runs]


def serial(run: Run) -> dict[str, object]:
    """The same run in this one process."""
    alone = Run(
        dtype=run.dtype,
        compute=run.compute,
        tied=run.tied,
        samples=run.samples,
        length=run.length,
        steps=run.steps,
        clip=run.clip,
        ignored=run.ignored,
        sizes=run.sizes,
        loss_chunk=None,
    )
    result = train(0, 1, alone)
    assert result is not None
    return result


def pairs(*choices: tuple[object, ...]) -> list[tuple[object, ...]]:
    """Few rows in which every pair of values of any two columns occurs (greedy all-pairs)."""
    import itertools

    rows = list(itertools.product(*choices))
    todo = {
        ((i, row[i]), (j, row[j])) for row in rows for i, j in combinations(range(len(choices)), 2)
    }
    picked = []
    while todo:
        best = max(
            rows,
            key=lambda row: sum(
                ((i, row[i]), (j, row[j])) in todo
                for i, j in combinations(range(len(choices)), 2)
            ),
        )
        picked.append(best)
        todo -= {((i, best[i]), (j, best[j])) for i, j in combinations(range(len(choices)), 2)}
    return picked
