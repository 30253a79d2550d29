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

from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.save import layout_of
from engine.data import vocabulary
from engine.data.loader import Batch, EvalBatches, TrainBatches
from engine.data.source import Corpus
from engine.errors import RunError, UserError
from engine.evaluation import TOPS, Evaluation, EvaluationRequest
from engine.inout.open_model import open_saved_model
from engine.inout.saved_model import SavedModel
from engine.nvme.offload import open_offload
from engine.open_data import open_data
from engine.runs.folder import RunFolder
from engine.runs.resolve import resolve_weights
from engine.training.build import build_on_world, choose_run_matmul
from engine.training.pipeline import Pipeline
from engine.training.trainer import micro_batches
from models.parallel.targets import IGNORED

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.world.world import World
    from models.chunks import ModelChunks
    from models.gpt import GPT


def evaluate(
    world: World,
    folder: RunFolder,
    step: str,
    request: EvaluationRequest,
    *,
    cache: Path,
    overrides: Sequence[str] = (),
) -> Evaluation:
    """Measure the weights at ``step`` ('latest', 'best' or a number); the same on every rank.

    All ranks call it. ``cache`` is for tokenised text where the settings name no folder;
    ``overrides`` of the run's settings, which the world's plan has, are noted.

    Raises:
        UserError: there are no such weights or samples, or the data has another vocabulary.
        RunError: the weights are not what was written, or give no finite loss.
    """
    plan, started = world.plan, time.perf_counter()
    world.run_on_all(lambda: request.check(plan))
    path = Path(world.run_on_rank_0(lambda: str(resolve_weights(folder, step))))
    saved = world.run_on_all(lambda: open_saved_model(path))
    batches = open_data(world, cache=cache, notify=_print_to_stderr(world))
    batches = batches.with_corpus(
        world.run_on_all(lambda: _corpus_for_weights(plan, saved, batches.corpus))
    )
    eval_batches = _eval_batches(batches, request)
    with open_offload(plan, world) as offload:
        model = build_on_world(world, plan, choose_run_matmul(world), offload)
        _load_verified(world, model, saved)
        _warn(world, saved, batches.corpus.fingerprint)
        found = _measure(
            world, model, eval_batches, request.last_n, bytes_per_token(world, batches)
        )
    targets, text, loss, *hits = found
    if not math.isfinite(loss):
        raise RunError(f"{path}: the loss is {loss}")
    tokenizer = batches.corpus.tokenizer
    return Evaluation(
        run=str(folder.path),
        weights=str(path),
        step=_step_of_weights(folder, saved),
        split=request.split,
        samples=eval_batches.samples,
        split_samples=eval_batches.split.samples,
        seq_len=plan.settings.seq_len,
        last_n=request.last_n,
        targets=int(targets),
        bytes=None if tokenizer is None else int(text),
        loss=loss / targets,
        top_1=hits[0] / targets,
        top_10=hits[1] / targets,
        layout=str(layout_of(plan.settings, plan.layout.data)),
        precision=plan.settings.precision,
        overrides=tuple(overrides),
        seconds=time.perf_counter() - started,
    )


def _warn(world: World, saved: SavedModel, corpus: str) -> None:
    """Report samples that the weights were not trained on: longer ones, or of other data."""
    plan, path, print_line = world.plan, saved.path, _print_to_stderr(world)
    if plan.settings.seq_len > saved.length:
        print_line(
            f"warning: {plan.cite('seq_len')} is longer than the {saved.length:,} positions that "
            f"{path} was trained with: targets beyond them are predicted from untrained positions"
        )
    if _data_changed(plan, path, corpus):
        print_line(f"warning: the data is not what {path} was trained and validated on")


def _load_verified(world: World, model: ModelChunks, saved: SavedModel) -> None:
    """The weights, once they are verified, in which the ranks share. Raises RunError."""
    if problems := saved.verify(world.rank, world.size):
        raise RunError(f"{saved.path}: {'; '.join(problems)}")
    try:
        saved.load(model)
    except ValueError as error:
        raise RunError(f"{saved.path}: {error}") from None


def _corpus_for_weights(plan: Plan, saved: SavedModel, corpus: Corpus) -> Corpus:
    """The corpus by the ids of the weights. Raises UserError where they lack a token of it."""
    if not vocabulary.is_other_kind(corpus, saved.tokenizer):
        _, new = vocabulary.use_saved_ids(corpus, saved.tokenizer)
        if new:
            raise UserError(
                f"{corpus.description}: it has {vocabulary.list_tokens(new)}, which "
                f"{saved.path} has "
                "no ids for; evaluate it on text without them, by data.path=..."
            )
    return vocabulary.corpus_for_model(plan, corpus, saved.tokenizer, path=saved.path)[0]


def _eval_batches(batches: TrainBatches, request: EvaluationRequest) -> EvalBatches:
    """The samples that are asked for."""
    corpus = batches.corpus
    split = corpus.train if request.split == "train" else corpus.validation
    held, requested = split.samples, request.samples
    assert held is not None or requested is not None, "the subject was checked"
    return batches.eval_batches(split, min(n for n in (held, requested) if n is not None))


def _data_changed(plan: Plan, path: Path, corpus: str) -> bool:
    """Whether the settings of a checkpoint's data give other samples now."""
    if not path.is_dir():
        return False
    then, now = SavedCheckpoint(path).training, plan.settings.model_dump(mode="json")
    same = all(then.settings.get(name) == now[name] for name in ("data", "seq_len", "seed"))
    return same and then.corpus != corpus


def _measure(
    world: World,
    model: ModelChunks,
    eval_batches: EvalBatches,
    last_n: int | None,
    bytes_per_id: Tensor,
) -> list[float]:
    """Targets, bytes that they stand for, summed loss and hits of each of TOPS, over all ranks."""
    plan, data, device = world.plan, world.axes["data"], world.device
    pipeline = Pipeline(model, world.axes["pipeline"], plan.settings.schedule)
    model.train(False)

    def measure(chunk: GPT, x: Tensor, targets: Tensor) -> Tensor:
        return chunk.loss_and_top_k(x, targets, TOPS)

    counts = torch.zeros(2, dtype=torch.int64)
    sums = torch.zeros(1 + len(TOPS), dtype=torch.float64, device=device)
    for number in _with_progress_bar(eval_batches.batches, world):
        ids, targets = mask_all_but_last(eval_batches.batch(number, data.index), last_n)
        counted = targets[targets != IGNORED]
        counts += torch.stack([torch.tensor(len(counted)), bytes_per_id[counted].sum()])
        pipeline.evaluate(list(micro_batches(plan, (ids, targets), device)), measure, sums)
    read, found = data.all_reduce(counts.to(device)), world.axes["world"].all_reduce(sums)
    return [*read.tolist(), *found.tolist()]


def mask_all_but_last(batch: Batch, last_n: int | None) -> Batch:
    """The batch, of whose targets [samples, seq_len] only those at the last so many positions
    count; None: all."""
    ids, targets = batch
    if last_n is None:
        return batch
    early = torch.arange(targets.shape[1]) < targets.shape[1] - last_n
    return ids, targets.masked_fill(early, IGNORED)


def bytes_per_token(world: World, batches: TrainBatches) -> Tensor:
    """How many bytes each id stands for [ids]; 0 where they stand for no text."""
    tokenizer = batches.corpus.tokenizer
    if tokenizer is None:
        return torch.zeros(world.plan.settings.model.vocab_size, dtype=torch.int64)
    return torch.from_numpy(tokenizer.byte_counts())


def _step_of_weights(folder: RunFolder, saved: SavedModel) -> int | None:
    """After which step the weights were written."""
    step = folder.read_status().get("step") if saved.step is None else saved.step
    return step if isinstance(step, int) else None


def _with_progress_bar(number: int, world: World) -> Iterator[int]:
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


def _print_to_stderr(world: World) -> Callable[[str], None]:
    """To stderr: stdout is for what is found."""

    def print_line(text: str) -> None:
        if world.is_main:
            print(text, file=sys.stderr, flush=True)

    return print_line
