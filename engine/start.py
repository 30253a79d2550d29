"""Where a run begins: which folder, which checkpoint, and what has changed since."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from engine.atomic_write import remove_temporaries
from engine.checkpoint import compatibility
from engine.checkpoint.data_position import consumed_by, rest_of_epoch
from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.checkpoint.save import layout_of
from engine.checkpoint.saver import restore
from engine.data import vocabulary
from engine.errors import UserError
from engine.inout import initial_weights
from engine.inout.saved_model import SavedModel
from engine.runs.folder import RunFolder, claim_folder
from engine.runs.plan_from_run import write_record
from engine.runs.resume_candidates import (
    ResumeCandidate,
    StartOptions,
    chosen_output,
    resume_candidates,
)
from engine.training.matmuls import MATMULS

if TYPE_CHECKING:
    from engine.data.loader import TrainBatches
    from engine.data.source import Corpus
    from engine.plan import Plan
    from engine.training.trainer import Trainer
    from engine.world.world import World


@dataclass(frozen=True, kw_only=True)
class StartPoint:
    """Where a run begins: the way, whose folder is kept from other jobs while ``lock_stack`` is
    open, and a checkpoint that verifies, where there is one, or the model whose weights are the
    first. ``corpus`` is by the ids of either."""

    world: World
    plan: Plan
    options: StartOptions
    candidate: ResumeCandidate
    corpus: Corpus
    checkpoint: SavedCheckpoint | None
    model: SavedModel | None = None
    lock_stack: ExitStack

    @property
    def step(self) -> int:
        """Steps done before."""
        return self.checkpoint.training.step if self.checkpoint else 0

    def remaining_batches(self, batches: TrainBatches) -> TrainBatches:
        """What is left of them."""
        batches = batches.with_corpus(self.corpus)
        if self.checkpoint is None:
            return batches
        return batches.resumed_at(consumed_by(self.checkpoint.training, self.corpus))

    def matmul(self, device: torch.device) -> str | None:
        """Return the matmul library of the checkpoint, which a resume keeps because another rounds
        differently. None where the setting names one, or device or precision are others."""
        if self.checkpoint is None or self.plan.settings.matmul is not None:
            return None
        then = self.checkpoint.training
        same = then.device == device.type
        same &= then.settings.get("precision") == self.plan.settings.precision
        return then.matmul if same and then.matmul in MATMULS else None

    def restore(self, trainer: Trainer) -> None:
        """Bring a new run to where the checkpoint was written, or to the weights it begins with.
        Raises RunError, UserError."""
        if self.checkpoint is not None:
            restore(trainer, self.checkpoint)
        elif self.model is not None:
            model = self.model
            self.world.run_on_all(lambda: initial_weights.load_initial_weights(trainer, model))

    def claim_folder(self) -> RunFolder:
        """The run's folder, its own from here on. Raises UserError."""
        return RunFolder(Path(self.world.run_on_rank_0(self._claim_folder)))

    def _claim_folder(self) -> str:
        folder = self._open_run_folder()
        if self.model is not None:
            requested = self.options.init_from or self.model.path
            initial_weights.InitialWeightsRecord.of(requested, self.model).record(folder)
        return str(folder.path)

    def _open_run_folder(self) -> RunFolder:
        """What a folder holds beyond the checkpoint goes out of the way."""
        candidate, name, run_id = self.candidate, self.plan.settings.name, self.world.run_id
        if candidate.run_folder is None:
            folder = claim_folder(name, run_id, output=chosen_output(self.plan, self.options))
            self.lock_stack.enter_context(folder.lock())
            write_record(folder, self.plan)
            return folder
        folder = RunFolder(Path(candidate.run_folder))
        if self.checkpoint is None and folder.read_status().get("state") == "finished":
            raise UserError(f"{folder.path}: a finished run without a checkpoint: another --output")
        write_record(
            folder, self.plan
        )  # first: a restart goes on with the record beside its launch's id
        folder.reassign(run_id)
        checkpoints = CheckpointDirectory(folder.checkpoints)
        checkpoints.remove_temporaries()
        remove_temporaries(folder.weights)
        here = self.checkpoint is not None and self.checkpoint.path.parent == checkpoints.path
        for path in checkpoints.archive_after(after=self.step if here else -1):
            self.world.print_rank_0(
                f"{path}: kept under this name, since the run goes on from before it"
            )
        return folder


def find_start(world: World, plan: Plan, corpus: Corpus, options: StartOptions) -> StartPoint:
    """Find the checkpoint to go on from, if any, and hold its run's folder. All ranks call it.

    ``corpus`` is the data there is now. A launch that was here before (a restart by torchrun,
    a requeued job) goes on in its own folder, whatever was asked. Nothing is changed on the disk.

    Raises:
        UserError: on all ranks; there is nothing to go on from, or it does not fit.
    """
    found = world.run_on_rank_0(
        lambda: json.dumps([asdict(way) for way in resume_candidates(world.run_id, plan, options)])
    )
    for candidate in (ResumeCandidate(**fields) for fields in json.loads(found)):
        for line in candidate.remarks:
            world.print_rank_0(line)
        with ExitStack() as lock_stack:
            world.run_on_rank_0(lambda way=candidate, door=lock_stack: _lock_folder(way, door))  # type: ignore[misc]
            checkpoint = _newest_intact(world, candidate)
            model = None
            if (
                checkpoint is not None
                and candidate.finished
                and str(checkpoint.path) == candidate.checkpoints[0]
            ):
                world.print_rank_0(candidate.finished)
            if checkpoint is not None:
                corpus = _report_changes(world, plan, checkpoint, corpus, options)
            elif candidate.starts_over:
                model = _open_initial_weights(world, plan, candidate, options)
                corpus = _corpus_for_initial_weights(world, plan, model, corpus)
            else:
                continue
            return StartPoint(
                world=world,
                plan=plan,
                options=options,
                candidate=candidate,
                corpus=corpus,
                checkpoint=checkpoint,
                model=model,
                lock_stack=lock_stack.pop_all(),
            )
    return world.run_on_all(lambda: _reject_resume(options))


def _reject_resume(options: StartOptions) -> NoReturn:
    raise UserError(f"--resume={options.resume}: no checkpoint there that verifies")


def _lock_folder(candidate: ResumeCandidate, lock_stack: ExitStack) -> str:
    if candidate.run_folder is not None and (candidate.checkpoints or candidate.starts_over):
        lock_stack.enter_context(RunFolder(Path(candidate.run_folder)).lock())
    return ""


def _newest_intact(world: World, candidate: ResumeCandidate) -> SavedCheckpoint | None:
    """The first of the checkpoints that is what was written. The ranks share its files out."""
    if candidate.run_folder is not None and not candidate.checkpoints and not candidate.starts_over:
        world.print_rank_0(f"{candidate.run_folder} is skipped: it has no checkpoint")
    for path in candidate.checkpoints:
        checkpoint = SavedCheckpoint(Path(path))
        reports = world.control_plane.all_gather(
            json.dumps(checkpoint.verify(world.rank, world.size))
        )
        problems = dict.fromkeys(problem for of_rank in reports for problem in json.loads(of_rank))
        if not problems:
            return checkpoint
        world.print_rank_0(f"{path} is skipped: {'; '.join(problems)}")
    return None


def _open_initial_weights(
    world: World, plan: Plan, candidate: ResumeCandidate, options: StartOptions
) -> SavedModel | None:
    """The model whose weights a run that starts over begins with, if not with random ones."""
    run_folder = Path(candidate.run_folder) if candidate.run_folder else None
    path = world.run_on_rank_0(
        lambda: str(initial_weights.find_initial_weights(options.init_from, run_folder) or "")
    )
    if not path:
        return None
    model = world.run_on_all(lambda: initial_weights.open_initial(plan, Path(path)))
    reports = world.control_plane.all_gather(json.dumps(model.verify(world.rank, world.size)))
    problems = [problem for of_rank in reports for problem in json.loads(of_rank)]
    world.run_on_all(lambda: _reject_corrupt_model(model, problems))
    for line in initial_weights.notes(plan, model):
        world.print_rank_0(line)
    return model


def _reject_corrupt_model(model: SavedModel, problems: list[str]) -> None:
    if problems:
        raise UserError(
            f"{model.path} is not what was written: {'; '.join(dict.fromkeys(problems))}"
        )


def _corpus_for_initial_weights(
    world: World, plan: Plan, model: SavedModel | None, corpus: Corpus
) -> Corpus:
    """The corpus by the ids of the weights that the run begins with, where it begins with some of
    the same kind of tokenizer. Raises UserError."""

    def found() -> tuple[Corpus, list[str]]:
        if model is None:
            return vocabulary.corpus_for_model(plan, corpus)
        if vocabulary.is_other_kind(corpus, model.tokenizer):
            told = f"its ids stand for other text than in {model.path}"
            return vocabulary.corpus_for_model(plan, corpus)[0], [
                f"{plan.cite('data.tokenizer')}: {told}"
            ]
        return vocabulary.corpus_for_model(plan, corpus, model.tokenizer, path=model.path)

    corpus, lines = world.run_on_all(found)
    for line in lines:
        world.print_rank_0(line)
    return corpus


def _report_changes(
    world: World, plan: Plan, checkpoint: SavedCheckpoint, corpus: Corpus, options: StartOptions
) -> Corpus:
    """What has changed since the checkpoint, and what that means; the corpus by the ids of the
    checkpoint. Raises UserError."""

    def compare() -> tuple[Corpus, list[str], list[str]]:
        remedy = f"begin a new run with --init-from {checkpoint.path}"
        found, new = vocabulary.corpus_for_model(
            plan, corpus, checkpoint.tokenizer, path=checkpoint.path, remedy=remedy
        )
        training, allowed = checkpoint.training, options.new_data
        told = compatibility.check_compatible(
            plan, found.fingerprint, training, path=checkpoint.path, new_data=allowed
        )
        return found, told, new + rest_of_epoch(training, found)

    found, lines, new = world.run_on_all(compare)
    move = compatibility.layout_change(
        checkpoint.manifest.layout, layout_of(plan.settings, plan.layout.data)
    )
    threads = compatibility.thread_change(
        checkpoint.training, world.device.type, torch.get_num_threads()
    )
    unused = [f"--init-from={options.init_from} is not used then"] if options.init_from else []
    for line in [
        f"going on from {checkpoint.path}",
        *unused,
        *([move] if move else []),
        *compatibility.batch_change(checkpoint.training, checkpoint.manifest.layout, plan),
        *threads,
        *lines,
        *new,
    ]:
        world.print_rank_0(line)
    return found
