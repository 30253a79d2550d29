"""A run's weights, measured on a split of its data, in any layout."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from engine.checkpoint.load import Stored
from engine.checkpoint.save import layout_of
from engine.data import vocabulary
from engine.data.loader import Batch, Batches, Sweep
from engine.data.source import IGNORED, Corpus
from engine.errors import Failed, Refused
from engine.evaluation import TOPS, Evaluation, Subject
from engine.inout.open_model import open_trained
from engine.inout.saved_model import Trained
from engine.nvme.offload import open_offload
from engine.open_data import open_data
from engine.runs.folder import RunFolder
from engine.runs.resolve import pick_weights
from engine.training.build import build_on, matmul_of
from engine.training.pipeline import Pipeline
from engine.training.trainer import micro_batches

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.world.world import World
    from models.chunks import Chunks
    from models.gpt import GPT


def evaluate(
    world: World,
    folder: RunFolder,
    step: str,
    subject: Subject,
    *,
    cache: Path,
    overrides: Sequence[str] = (),
) -> Evaluation:
    """Measure the weights at ``step`` ('latest', 'best' or a number); the same on every rank.

    All ranks call it. ``cache`` is for tokenised text where the settings name no folder;
    ``overrides`` of the run's settings, which the world's plan has, are noted.

    Raises:
        Refused: there are no such weights or samples, or the data has another vocabulary.
        Failed: the weights are not what was written, or give no finite loss.
    """
    plan, started = world.plan, time.perf_counter()
    world.agree(lambda: subject.check(plan))
    path = Path(world.share(lambda: str(pick_weights(folder, step))))
    trained = world.agree(lambda: open_trained(path))
    batches = open_data(world, cache=cache, notify=_say(world))
    batches = batches.of(world.agree(lambda: _by_ids_of(plan, trained, batches.corpus)))
    sweep = _sweep(batches, subject)
    with open_offload(plan, world) as offload:
        model = build_on(world, plan, matmul_of(world), offload)
        _load(world, model, trained)
        _warn(world, trained, batches.corpus.fingerprint)
        found = _measure(world, model, sweep, subject.last_n, bytes_of(world, batches))
    targets, text, loss, *hits = found
    if not math.isfinite(loss):
        raise Failed(f"{path}: the loss is {loss}")
    words = batches.corpus.tokenizer
    return Evaluation(
        run=str(folder.path),
        weights=str(path),
        step=_step(folder, trained),
        split=subject.split,
        samples=sweep.samples,
        split_samples=sweep.split.samples,
        seq_len=plan.settings.seq_len,
        last_n=subject.last_n,
        targets=int(targets),
        bytes=None if words is None else int(text),
        loss=loss / targets,
        top_1=hits[0] / targets,
        top_10=hits[1] / targets,
        layout=str(layout_of(plan.settings, plan.layout.data)),
        precision=plan.settings.precision,
        overrides=tuple(overrides),
        seconds=time.perf_counter() - started,
    )


def _warn(world: World, trained: Trained, corpus: str) -> None:
    """Report samples that the weights were not trained on: longer ones, or of other data."""
    plan, path, say = world.plan, trained.path, _say(world)
    if plan.settings.seq_len > trained.length:
        say(
            f"warning: {plan.cite('seq_len')} is longer than the {trained.length:,} positions that "
            f"{path} was trained with: targets beyond them are predicted from untrained positions"
        )
    if _has_changed(plan, path, corpus):
        say(f"warning: the data is not what {path} was trained and validated on")


def _load(world: World, model: Chunks, trained: Trained) -> None:
    """The weights, once they are verified, in which the ranks share. Raises Failed."""
    if problems := trained.problems(world.rank, world.size):
        raise Failed(f"{trained.path}: {'; '.join(problems)}")
    try:
        trained.load(model)
    except ValueError as error:
        raise Failed(f"{trained.path}: {error}") from None


def _by_ids_of(plan: Plan, trained: Trained, corpus: Corpus) -> Corpus:
    """The corpus by the ids of the weights. Raises Refused where they lack a token of it."""
    if not vocabulary.is_other_kind(corpus, trained.tokenizer):
        _, new = vocabulary.adopt(corpus, trained.tokenizer)
        if new:
            raise Refused(
                f"{corpus.description}: it has {vocabulary.listed(new)}, which {trained.path} has "
                "no ids for; evaluate it on text without them, by data.path=..."
            )
    return vocabulary.for_model(plan, corpus, trained.tokenizer, path=trained.path)[0]


def _sweep(batches: Batches, subject: Subject) -> Sweep:
    """The samples that are asked for."""
    corpus = batches.corpus
    split = corpus.train if subject.split == "train" else corpus.validation
    held, asked = split.samples, subject.samples
    assert held is not None or asked is not None, "the subject was checked"
    return batches.sweep(split, min(n for n in (held, asked) if n is not None))


def _has_changed(plan: Plan, path: Path, corpus: str) -> bool:
    """Whether the settings of a checkpoint's data give other samples now."""
    if not path.is_dir():
        return False
    then, now = Stored(path).training, plan.settings.model_dump(mode="json")
    same = all(then.settings.get(name) == now[name] for name in ("data", "seq_len", "seed"))
    return same and then.corpus != corpus


def _measure(
    world: World, model: Chunks, sweep: Sweep, last_n: int | None, size_of: Tensor
) -> list[float]:
    """Targets, bytes that they stand for, summed loss and hits of each of TOPS, over all ranks."""
    plan, data, device = world.plan, world.axes["data"], world.device
    pipeline = Pipeline(model, world.axes["pipeline"], plan.settings.schedule)
    model.train(False)

    def measure(chunk: GPT, x: Tensor, targets: Tensor) -> Tensor:
        return chunk.scores(x, targets, TOPS)

    counts = torch.zeros(2, dtype=torch.int64)
    sums = torch.zeros(1 + len(TOPS), dtype=torch.float64, device=device)
    for number in _counted(sweep.batches, world):
        ids, targets = last_positions(sweep.batch(number, data.index), last_n)
        counted = targets[targets != IGNORED]
        counts += torch.stack([torch.tensor(len(counted)), size_of[counted].sum()])
        pipeline.evaluate(list(micro_batches(plan, (ids, targets), device)), measure, sums)
    read, found = data.all_reduce(counts.to(device)), world.axes["world"].all_reduce(sums)
    return [*read.tolist(), *found.tolist()]


def last_positions(batch: Batch, last_n: int | None) -> Batch:
    """The batch, of whose targets [samples, seq_len] only those at the last so many positions
    count; None: all."""
    ids, targets = batch
    if last_n is None:
        return batch
    early = torch.arange(targets.shape[1]) < targets.shape[1] - last_n
    return ids, targets.masked_fill(early, IGNORED)


def bytes_of(world: World, batches: Batches) -> Tensor:
    """How many bytes each id stands for [ids]; 0 where they stand for no text."""
    words = batches.corpus.tokenizer
    if words is None:
        return torch.zeros(world.plan.settings.model.vocab_size, dtype=torch.int64)
    return torch.from_numpy(words.byte_counts())


def _step(folder: RunFolder, trained: Trained) -> int | None:
    """After which step the weights were written."""
    step = folder.read_status().get("step") if trained.step is None else trained.step
    return step if isinstance(step, int) else None


def _counted(number: int, world: World) -> Iterator[int]:
    """0 to ``number`` - 1, with a bar where a person is watching."""
    console = Console(stderr=True)
    watched = world.is_main and console.is_terminal
    yield from track(
        range(number),
        "evaluating",
        console=console,
        disable=not watched,
        refresh_per_second=2,
        transient=True,
    )


def _say(world: World) -> Callable[[str], None]:
    """To stderr: stdout is for what is found."""

    def say(text: str) -> None:
        if world.is_main:
            print(text, file=sys.stderr, flush=True)

    return say
