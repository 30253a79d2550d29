"""Decides where a run starts: with random weights, from --init-from or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from engine.checkpoint import compatibility
from engine.checkpoint.data_position import consumed_by, rest_of_epoch
from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.save import layout_of
from engine.checkpoint.saver import restore
from engine.data.vocabulary import remap
from engine.errors import UserError
from engine.files.atomic_write import remove_temporaries
from engine.inout import initial_weights
from engine.inout.saved_model import SavedModel
from engine.runs.folder import RunFolder, claim_folder
from engine.runs.plan_from_run import write_record
from engine.runs.run_name import run_name
from engine.runs.start_candidates import (
    StartCandidate,
    StartOptions,
    chosen_output,
    start_candidates,
)
from engine.training.matmuls import MATMULS

if TYPE_CHECKING:
    from engine.data.batches.loader import TrainBatches
    from engine.data.source import Corpus
    from engine.plan import Plan
    from engine.training.trainer import Trainer
    from engine.world.world import World


@dataclass(frozen=True, kw_only=True)
class StartPoint:
    """The resolved starting point of a run."""

    world: World
    """The world, in whose plan the size of the vocabulary is determined."""
    options: StartOptions
    candidate: StartCandidate
    """The chosen candidate."""
    corpus: Corpus
    """The data, encoded with the token ids of the checkpoint or of the initial weights."""
    checkpoint: SavedCheckpoint | None
    """The intact checkpoint to resume from; None to start at step 0."""
    model: SavedModel | None = None
    """The initial weights; None for random ones, or if there is a checkpoint."""
    lock_stack: ExitStack
    """Unlocks the run's folder when it is closed."""

    @property
    def plan(self) -> Plan:
        """The plan of the world."""
        return self.world.plan

    @property
    def step(self) -> int:
        """The number of steps done before this start."""
        return self.checkpoint.training.step if self.checkpoint else 0

    def remaining_batches(self, batches: TrainBatches) -> TrainBatches:
        """Return the batches that the run has not read yet."""
        batches = batches.with_corpus(self.corpus)
        if self.checkpoint is None:
            return batches
        return batches.resumed_at(consumed_by(self.checkpoint.training, self.corpus))

    def matmul(self) -> str | None:
        """Return the matmul library of the checkpoint: a resume uses it again, because another
        library rounds differently. None if the setting ``matmul`` is set, or device or precision
        have changed."""
        if self.checkpoint is None or self.plan.settings.matmul is not None:
            return None
        saved = self.checkpoint.training
        same = saved.device == self.world.device.type
        same &= saved.settings.get("precision") == self.plan.settings.precision
        return saved.matmul if same and saved.matmul in MATMULS else None

    def restore(self, trainer: Trainer) -> None:
        """Restore the state of the checkpoint, or load the initial weights. Raises RunError,
        UserError."""
        if self.checkpoint is not None:
            restore(trainer, self.checkpoint)
        elif self.model is not None:
            model = self.model
            self.world.run_on_all(lambda: initial_weights.load_initial_weights(trainer, model))

    def claim_folder(self) -> RunFolder:
        """Create or reassign the run's folder and return it on all ranks. Raises UserError."""
        return RunFolder(Path(self.world.run_on_rank_0(self._claim_folder)))

    def _claim_folder(self) -> str:
        folder = self._open_run_folder()
        if self.model is not None:
            requested = self.options.init_from or self.model.path
            initial_weights.InitialWeightsRecord.of(requested, self.model).record(folder)
        return str(folder.path)

    def _open_run_folder(self) -> RunFolder:
        """Create and lock a new folder, or prepare the existing folder: write the record of this
        plan, delete temporary files, and archive the checkpoints that are newer than the resumed
        checkpoint."""
        candidate, name, run_id = self.candidate, run_name(self.plan), self.world.run_id
        if candidate.run_folder is None:
            folder = claim_folder(name, run_id, output=chosen_output(self.plan, self.options))
            self.lock_stack.enter_context(folder.lock())
            write_record(folder, self.plan)
            return folder
        folder = RunFolder(Path(candidate.run_folder))
        if self.checkpoint is None and folder.read_status().get("state") == "finished":
            raise UserError(
                f"{folder.path} contains a finished run and has no checkpoint to resume from; "
                "choose another --output"
            )
        # The record first: a restart finds the folder by its run id, and then needs the record
        write_record(folder, self.plan)
        folder.reassign(run_id)
        checkpoints = CheckpointDirectory(folder.checkpoints)
        checkpoints.remove_temporaries()
        remove_temporaries(folder.weights)
        here = self.checkpoint is not None and self.checkpoint.path.parent == checkpoints.path
        for path in checkpoints.archive_after(after=self.step if here else -1):
            self.world.print_rank_0(
                f"moved a checkpoint to {path}: it is newer than the one this run resumes from"
            )
        return folder


def find_start(world: World, corpus: Corpus, options: StartOptions) -> StartPoint:
    """Find the checkpoint to resume from, if any, and lock the folder of its run. All ranks call
    this.

    ``corpus``: the present data. A restarted launch (by torchrun, a requeued job) continues in its
    own folder, whatever the options. Changes nothing on the disk except the lock.

    Raises:
        UserError: on all ranks; there is no checkpoint to resume from, or it is incompatible.
    """
    candidates = world.run_on_rank_0(
        lambda: [asdict(item) for item in start_candidates(world.run_id, world.plan, options)]
    )
    for candidate in (StartCandidate(**fields) for fields in candidates):
        for line in candidate.remarks:
            world.print_rank_0(line)
        with ExitStack() as lock_stack:
            world.run_on_rank_0(partial(_lock_folder, candidate, lock_stack))
            checkpoint = _newest_intact(world, candidate)
            model = None
            if checkpoint is not None:
                world = _with_vocabulary(world, checkpoint.training.vocab_size)
                if candidate.finished and str(checkpoint.path) == candidate.checkpoints[0]:
                    world.print_rank_0(candidate.finished)
                corpus = _report_changes(world, checkpoint, corpus, options)
            elif candidate.starts_over:
                model = _open_initial_weights(world, candidate, options)
                saved = model.tokenizer if model else None
                world = _with_vocabulary(world, partial(remap.vocabulary_size, corpus, saved))
                for line in initial_weights.notes(world.plan, model) if model else ():
                    world.print_rank_0(line)
                corpus = _corpus_for_initial_weights(world, model, corpus)
            else:
                continue
            return StartPoint(
                world=world,
                options=options,
                candidate=candidate,
                corpus=corpus,
                checkpoint=checkpoint,
                model=model,
                lock_stack=lock_stack.pop_all(),
            )
    return world.run_on_all(partial(_reject_resume, options))


def _with_vocabulary(world: World, find: Callable[[], int]) -> World:
    """Return the world with a plan whose model.vocab_size='data' is determined by ``find``, which
    returns an equal size on all ranks, because all read the same data. Raises UserError."""
    if not world.plan.undetermined:
        return world
    return replace(world, plan=world.run_on_all(lambda: world.plan.with_vocabulary(find())))


def _reject_resume(options: StartOptions) -> NoReturn:
    raise UserError(
        f"--resume={options.resume}: no intact checkpoint found; name another run or checkpoint, "
        "or begin a new run with --resume none"
    )


def _lock_folder(candidate: StartCandidate, lock_stack: ExitStack) -> None:
    """Lock the candidate's folder until ``lock_stack`` is closed. Raises UserError."""
    if candidate.run_folder is not None and (candidate.checkpoints or candidate.starts_over):
        lock_stack.enter_context(RunFolder(Path(candidate.run_folder)).lock())


def _newest_intact(world: World, candidate: StartCandidate) -> SavedCheckpoint | None:
    """Verify the candidate's checkpoints in order and return the first intact one; print the
    problems of the others. The ranks divide the files of each checkpoint among themselves."""
    if candidate.run_folder is not None and not candidate.checkpoints and not candidate.starts_over:
        world.print_rank_0(f"skipping {candidate.run_folder}: it has no checkpoint")
    for path in candidate.checkpoints:
        checkpoint = SavedCheckpoint(Path(path))
        problems = world.gather_problems(checkpoint.verify(world.rank, world.size))
        if not problems:
            return checkpoint
        world.print_rank_0(f"skipping corrupt checkpoint {path}: {'; '.join(problems)}")
    return None


def _open_initial_weights(
    world: World, candidate: StartCandidate, options: StartOptions
) -> SavedModel | None:
    """Open and verify the initial weights of a run that starts at step 0; None if they are random.
    Raises UserError."""
    run_folder = Path(candidate.run_folder) if candidate.run_folder else None
    path = world.run_on_rank_0(
        lambda: str(initial_weights.find_initial_weights(options.init_from, run_folder) or "")
    )
    if not path:
        return None
    model = world.run_on_all(lambda: initial_weights.open_initial(world.plan, Path(path)))
    model.require_intact(world)
    return model


def _corpus_for_initial_weights(world: World, model: SavedModel | None, corpus: Corpus) -> Corpus:
    """Encode the corpus with the token ids of the initial weights, if these were given with a
    tokenizer of the same kind. Raises UserError."""
    plan = world.plan
    for_model = partial(
        remap.corpus_for_model,
        corpus,
        vocab_size=plan.settings.model.vocab_size,
        cite=plan.cite,
    )

    def encode() -> tuple[Corpus, list[str]]:
        if model is None:
            return for_model()
        if remap.is_other_kind(corpus, model.tokenizer):
            difference = f"its ids have other meanings than in {model.path}"
            return for_model()[0], [f"{plan.cite('data.tokenizer')}: {difference}"]
        return for_model(model.tokenizer, path=model.path)

    corpus, lines = world.run_on_all(encode)
    for line in lines:
        world.print_rank_0(line)
    return corpus


def _report_changes(
    world: World, checkpoint: SavedCheckpoint, corpus: Corpus, options: StartOptions
) -> Corpus:
    """Check that the checkpoint can be resumed, and print all changes since the checkpoint was
    saved. Return the corpus, encoded with the checkpoint's token ids. Raises UserError."""
    plan, training, saved_layout = world.plan, checkpoint.training, checkpoint.manifest.layout
    batch_change = compatibility.batch_change(training, saved_layout, plan)

    def compare() -> tuple[Corpus, list[str], list[str]]:
        remedy = f"begin a new run with --init-from {checkpoint.path}"
        encoded, new_tokens = remap.corpus_for_model(
            corpus,
            checkpoint.tokenizer,
            vocab_size=plan.settings.model.vocab_size,
            cite=plan.cite,
            path=checkpoint.path,
            remedy=remedy,
        )
        changes = compatibility.check_compatible(
            plan,
            encoded.fingerprint,
            training,
            path=checkpoint.path,
            new_data=options.new_data,
            new_order=batch_change if encoded.ordered_by_batch else (),
        )
        return encoded, changes, new_tokens + rest_of_epoch(training, encoded)

    encoded, changes, data_changes = world.run_on_all(compare)
    layout = layout_of(plan.settings, plan.layout.data)
    fused = world.device.type == "cuda" and plan.settings.model.attn_pdrop > 0
    layout_change = compatibility.layout_change(saved_layout, layout, fused_dropout=fused)
    threads = torch.get_num_threads()
    ignored = f"--init-from={options.init_from} is ignored: the run resumes from a checkpoint"
    for line in [
        f"resuming from {checkpoint.path}",
        *([ignored] if options.init_from else []),
        *([layout_change] if layout_change else []),
        *([] if encoded.ordered_by_batch else batch_change),
        *compatibility.thread_change(training, world.device.type, threads),
        *compatibility.rate_change(training, plan),
        *compatibility.mask_change(training, plan),
        *changes,
        *data_changes,
    ]:
        world.print_rank_0(line)
    return encoded
