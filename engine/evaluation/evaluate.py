"""Evaluates the weights of a run on a split of its data, in any layout."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from engine.checkpoint.compatibility import data_has_changed
from engine.checkpoint.save import layout_of
from engine.data.batches.loader import Batch, EvalBatches, TrainBatches
from engine.data.images.codebook import Codebook
from engine.data.source import Corpus, SlidingSplit
from engine.data.text_loss.text_units import TextUnits
from engine.data.vocabulary import remap
from engine.errors import RunError, UserError
from engine.evaluation.request import EvaluationRequest
from engine.evaluation.result import TOPS, Evaluation, Measured
from engine.inout.open_model import CheckpointModel, open_saved_model
from engine.inout.saved_model import SavedModel
from engine.nvme.offload import open_offload
from engine.open_data import open_data
from engine.runs.folder import RunFolder
from engine.runs.lookup import resolve_weights
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
) -> list[Evaluation]:
    """Evaluate the weights of a run and return the result of each split on every rank. All ranks
    call it.

    Args:
        step: the checkpoint whose weights are evaluated: 'latest', 'best' or a step number.
        cache: folder for tokens, unless data.cache names one.
        overrides: the overrides with which the world's plan was made; the results record them.

    Raises:
        UserError: the weights or the samples do not exist, the weights are corrupt, or the
            vocabulary of the weights lacks a token of the data.
        RunError: the weights cannot be read, or the loss is not finite.
    """
    plan = world.plan
    world.run_on_all(lambda: request.check(plan))
    path = Path(world.run_on_rank_0(lambda: str(resolve_weights(folder, step))))
    saved = world.run_on_all(lambda: open_saved_model(path))
    batches = open_data(world, cache=cache, notify=world.print_to_stderr)
    batches = batches.with_corpus(
        world.run_on_all(lambda: _corpus_for_weights(plan, saved, batches.corpus))
    )
    splits = world.run_on_all(lambda: _eval_batches(batches, request, plan))
    saved.require_intact(world)
    _warn(world, saved, batches.corpus.fingerprint)
    units = TextUnits(batches.corpus.tokenizer)
    evaluation = _evaluation_of(plan, folder, saved, request, overrides, batches.corpus)
    results = []
    with open_offload(world) as offload:
        model = build_on_world(world, choose_run_matmul(world), offload)
        _load(model, saved)
        for eval_batches in splits:
            started = time.perf_counter()
            sums = _measure(world, model, eval_batches, request.last_n, units)
            if not math.isfinite(sums.loss):
                raise RunError(
                    f"{path}: the loss is {sums.loss}: its weights are NaN, infinite or too large; "
                    "evaluate another checkpoint"
                )
            results.append(
                evaluation(
                    split=eval_batches.name,
                    samples=eval_batches.samples,
                    split_samples=eval_batches.split.samples,
                    **vars(sums),
                    seconds=time.perf_counter() - started,
                )
            )
    return results


def _evaluation_of(
    plan: Plan,
    folder: RunFolder,
    saved: SavedModel,
    request: EvaluationRequest,
    overrides: Sequence[str],
    corpus: Corpus,
) -> partial[Evaluation]:
    """Return a constructor of Evaluation that sets all fields except the results of a split."""
    return partial(
        Evaluation,
        run=str(folder.path),
        weights=str(saved.path),
        step=_step_of_weights(folder, saved),
        seq_len=plan.settings.seq_len,
        last_n=request.last_n,
        sliding=request.sliding,
        dimension=_dimension(corpus),
        layout=str(layout_of(plan.settings, plan.layout.data)),
        precision=plan.settings.precision,
        overrides=tuple(overrides),
    )


def _dimension(corpus: Corpus) -> str | None:
    """Describe the dimension that an image's bits per dimension refer to; None for other data."""
    codebook = corpus.tokenizer
    if not isinstance(codebook, Codebook):
        return None
    return f"the code of a pixel, one of {codebook.size:,}"


def _warn(world: World, saved: SavedModel, corpus: str) -> None:
    """Warn if samples are longer than the trained positions, or the data has changed since
    training."""
    plan, path = world.plan, saved.path
    training = saved.checkpoint.training if isinstance(saved, CheckpointModel) else None
    if plan.settings.seq_len > saved.length:
        world.print_to_stderr(
            f"warning: {plan.cite('seq_len')} is longer than the {saved.length:,} positions that "
            f"{path} was trained with: targets beyond them are predicted from untrained positions"
        )
    if training is not None and data_has_changed(plan, corpus, training):
        world.print_to_stderr(
            f"warning: the data has changed since {path} was trained and validated on it"
        )


def _load(model: ModelChunks, saved: SavedModel) -> None:
    """Load the saved weights into ``model``. Raises RunError."""
    try:
        saved.load(model)
    except ValueError as error:
        raise RunError(f"{saved.path}: {error}") from None


def _corpus_for_weights(plan: Plan, saved: SavedModel, corpus: Corpus) -> Corpus:
    """Map the corpus to the token ids of the saved model. Raises UserError if its vocabulary lacks
    a token of the corpus."""
    return remap.corpus_for_model(
        corpus,
        saved.tokenizer,
        vocab_size=plan.settings.model.vocab_size,
        cite=plan.cite,
        path=saved.path,
        extend=False,
    )[0]


def _eval_batches(
    batches: TrainBatches, request: EvaluationRequest, plan: Plan
) -> list[EvalBatches]:
    """Return the batches of the requested samples of each split. Raises UserError if a split has no
    samples or cannot satisfy the request."""
    corpus, found = batches.corpus, []
    for name in request.splits(plan, corpus.splits):
        split = corpus.split(name)
        if split.samples is None and request.samples is None:
            raise UserError(
                f"the split {name!r} of {plan.cite('data.type')} is endless; pass --samples N"
            )
        if split.samples == 0:
            raise UserError(
                f"{corpus.description}: there is no split {name!r}; use --split with one of "
                f"{', '.join(corpus.splits)}"
            )
        if request.sliding:
            if not isinstance(split, SlidingSplit):
                raise UserError(
                    f"the samples of {plan.cite('data.type')} are not windows of a text, so they "
                    "cannot overlap; leave out --sliding"
                )
            assert request.last_n is not None, "EvaluationRequest.check requires it"
            split = split.sliding(request.last_n)
        found.append(batches.eval_batches(name, request.samples, split))
    return found


def _measure(
    world: World,
    model: ModelChunks,
    eval_batches: EvalBatches,
    last_n: int | None,
    units: TextUnits,
) -> Measured:
    """Evaluate the model on all batches and return its loss and accuracies, equal on all ranks."""
    plan, data, device = world.plan, world.axes["data"], world.device
    pipeline = Pipeline(model, world.axes["pipeline"], plan.settings.schedule)
    model.train(False)

    def measure(chunk: GPT, x: Tensor, targets: Tensor) -> Tensor:
        return chunk.loss_and_top_k(x, targets, TOPS)

    counts = torch.zeros(3, dtype=torch.int64)
    sums = torch.zeros(1 + len(TOPS), dtype=torch.float64, device=device)
    for number in _with_progress_bar(eval_batches.batches, world):
        ids, targets = mask_all_but_last(eval_batches.batch(number, data.index), last_n)
        counts += units.count(targets)
        pipeline.evaluate(list(micro_batches(plan, (ids, targets), device)), measure, sums)
    targets, in_bytes, characters = data.all_reduce(counts.to(device)).tolist()
    loss, *hits = (world.axes["world"].all_reduce(sums) / max(targets, 1)).tolist()
    return Measured(
        loss=loss if targets else math.nan,
        targets=targets,
        bytes=in_bytes if units.has_text else None,
        characters=characters if units.has_text else None,
        top_1=hits[0],
        top_10=hits[1],
    )


def mask_all_but_last(batch: Batch, last_n: int | None) -> Batch:
    """Replace the targets [samples, seq_len] by IGNORED except at the last ``last_n`` positions; if
    ``last_n`` is None, replace none."""
    ids, targets = batch
    if last_n is None:
        return batch
    early = torch.arange(targets.shape[1]) < targets.shape[1] - last_n
    return ids, targets.masked_fill(early, IGNORED)


def _step_of_weights(folder: RunFolder, saved: SavedModel) -> int | None:
    """Return the step after which the weights were saved, if known."""
    step = folder.read_status().get("step") if saved.step is None else saved.step
    return step if isinstance(step, int) else None


def _with_progress_bar(number: int, world: World) -> Iterator[int]:
    """Yield 0 to ``number`` - 1, and show a progress bar if stderr is a terminal."""
    console = Console(stderr=True)
    is_shown = world.is_main and console.is_terminal
    yield from track(
        range(number),
        "evaluating",
        console=console,
        disable=not is_shown,
        refresh_per_second=2,
        transient=True,
    )
