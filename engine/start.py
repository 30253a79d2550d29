"""Where a run begins: which folder, which checkpoint, and what has changed since."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from engine.atomic_write import clear_drafts
from engine.checkpoint import compatibility
from engine.checkpoint.data_position import consumed_by, rest_of_epoch
from engine.checkpoint.directory import Shelf
from engine.checkpoint.load import Stored
from engine.checkpoint.save import layout_of
from engine.checkpoint.saver import restore
from engine.data import vocabulary
from engine.errors import Refused
from engine.inout import initial_weights
from engine.inout.saved_model import Trained
from engine.runs.folder import RunFolder, claim
from engine.runs.plan_from_run import keep
from engine.runs.resume_candidates import Asked, Way, output_of, ways
from engine.training.matmuls import MATMULS

if TYPE_CHECKING:
    from engine.data.loader import Batches
    from engine.data.source import Corpus
    from engine.plan import Plan
    from engine.training.trainer import Run
    from engine.world.world import World


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins: the way, whose folder is kept from other jobs while ``door`` is open, and
    a checkpoint that verifies, where there is one, or the model whose weights are the first.
    ``corpus`` is by the ids of either."""

    world: World
    plan: Plan
    asked: Asked
    way: Way
    corpus: Corpus
    stored: Stored | None
    model: Trained | None = None
    door: ExitStack

    @property
    def step(self) -> int:
        """Steps done before."""
        return self.stored.training.step if self.stored else 0

    def batches(self, batches: Batches) -> Batches:
        """What is left of them."""
        batches = batches.of(self.corpus)
        if self.stored is None:
            return batches
        return batches.continued(consumed_by(self.stored.training, self.corpus))

    def matmul(self, device: torch.device) -> str | None:
        """Return the matmul library of the checkpoint, which a resume keeps because another rounds
        differently. None where the setting names one, or device or precision are others."""
        if self.stored is None or self.plan.settings.matmul is not None:
            return None
        then = self.stored.training
        same = then.device == device.type
        same &= then.settings.get("precision") == self.plan.settings.precision
        return then.matmul if same and then.matmul in MATMULS else None

    def restore(self, run: Run) -> None:
        """Bring a new run to where the checkpoint was written, or to the weights it begins with.
        Raises Failed, Refused."""
        if self.stored is not None:
            restore(run, self.stored)
        elif self.model is not None:
            model = self.model
            self.world.agree(lambda: initial_weights.load(run, model))

    def move_in(self) -> RunFolder:
        """The run's folder, its own from here on. Raises Refused."""
        return RunFolder(Path(self.world.share(self._move_in)))

    def _move_in(self) -> str:
        folder = self._enter()
        if self.model is not None:
            asked = self.asked.init_from or self.model.path
            initial_weights.Origin.of(asked, self.model).record(folder)
        return str(folder.path)

    def _enter(self) -> RunFolder:
        """What a folder holds beyond the checkpoint goes out of the way."""
        way, name, run_id = self.way, self.plan.settings.name, self.world.run_id
        if way.home is None:
            folder = claim(name, run_id, output=output_of(self.plan, self.asked))
            self.door.enter_context(folder.hold())
            keep(folder, self.plan)
            return folder
        folder = RunFolder(Path(way.home))
        if self.stored is None and folder.read_status().get("state") == "finished":
            raise Refused(f"{folder.path}: a finished run without a checkpoint: another --output")
        keep(folder, self.plan)  # first: a restart goes on with the record beside its launch's id
        folder.take_over(run_id)
        shelf = Shelf(folder.checkpoints)
        shelf.clear_drafts()
        clear_drafts(folder.weights)
        here = self.stored is not None and self.stored.path.parent == shelf.path
        for path in shelf.set_aside(after=self.step if here else -1):
            self.world.say(f"{path}: kept under this name, since the run goes on from before it")
        return folder


def begin(world: World, plan: Plan, corpus: Corpus, asked: Asked) -> Start:
    """Find the checkpoint to go on from, if any, and hold its run's folder. All ranks call it.

    ``corpus`` is the data there is now. A launch that was here before (a restart by torchrun,
    a requeued job) goes on in its own folder, whatever was asked. Nothing is changed on the disk.

    Raises:
        Refused: on all ranks; there is nothing to go on from, or it does not fit.
    """
    found = world.share(
        lambda: json.dumps([asdict(way) for way in ways(world.run_id, plan, asked)])
    )
    for way in (Way(**fields) for fields in json.loads(found)):
        for line in way.remarks:
            world.say(line)
        with ExitStack() as door:
            world.share(lambda way=way, door=door: _enter(way, door))  # type: ignore[misc]
            stored = _newest_good(world, way)
            model = None
            if stored is not None and way.finished and str(stored.path) == way.checkpoints[0]:
                world.say(way.finished)
            if stored is not None:
                corpus = _tell_changes(world, plan, stored, corpus, asked)
            elif way.starts_over:
                model = _first_weights(world, plan, way, asked)
                corpus = _by_first_weights(world, plan, model, corpus)
            else:
                continue
            return Start(
                world=world,
                plan=plan,
                asked=asked,
                way=way,
                corpus=corpus,
                stored=stored,
                model=model,
                door=door.pop_all(),
            )
    return world.agree(lambda: _refuse(asked))


def _refuse(asked: Asked) -> NoReturn:
    raise Refused(f"--resume={asked.resume}: no checkpoint there that verifies")


def _enter(way: Way, door: ExitStack) -> str:
    if way.home is not None and (way.checkpoints or way.starts_over):
        door.enter_context(RunFolder(Path(way.home)).hold())
    return ""


def _newest_good(world: World, way: Way) -> Stored | None:
    """The first of the checkpoints that is what was written. The ranks share its files out."""
    if way.home is not None and not way.checkpoints and not way.starts_over:
        world.say(f"{way.home} is skipped: it has no checkpoint")
    for path in way.checkpoints:
        stored = Stored(Path(path))
        told = world.ranks.exchange(json.dumps(stored.problems(world.rank, world.size)))
        problems = dict.fromkeys(problem for of_rank in told for problem in json.loads(of_rank))
        if not problems:
            return stored
        world.say(f"{path} is skipped: {'; '.join(problems)}")
    return None


def _first_weights(world: World, plan: Plan, way: Way, asked: Asked) -> Trained | None:
    """The model whose weights a run that starts over begins with, if not with random ones."""
    home = Path(way.home) if way.home else None
    path = world.share(lambda: str(initial_weights.find(asked.init_from, home) or ""))
    if not path:
        return None
    model = world.agree(lambda: initial_weights.open_initial(plan, Path(path)))
    told = world.ranks.exchange(json.dumps(model.problems(world.rank, world.size)))
    problems = [problem for of_rank in told for problem in json.loads(of_rank)]
    world.agree(lambda: _refuse_damaged(model, problems))
    for line in initial_weights.told(plan, model):
        world.say(line)
    return model


def _refuse_damaged(model: Trained, problems: list[str]) -> None:
    if problems:
        raise Refused(f"{model.path} is not what was written: {'; '.join(dict.fromkeys(problems))}")


def _by_first_weights(world: World, plan: Plan, model: Trained | None, corpus: Corpus) -> Corpus:
    """The corpus by the ids of the weights that the run begins with, where it begins with some of
    the same kind of tokenizer. Raises Refused."""

    def found() -> tuple[Corpus, list[str]]:
        if model is None:
            return vocabulary.for_model(plan, corpus)
        if vocabulary.is_other_kind(corpus, model.tokenizer):
            told = f"its ids stand for other text than in {model.path}"
            return vocabulary.for_model(plan, corpus)[0], [f"{plan.cite('data.tokenizer')}: {told}"]
        return vocabulary.for_model(plan, corpus, model.tokenizer, path=model.path)

    corpus, lines = world.agree(found)
    for line in lines:
        world.say(line)
    return corpus


def _tell_changes(world: World, plan: Plan, stored: Stored, corpus: Corpus, asked: Asked) -> Corpus:
    """What has changed since the checkpoint, and what that means; the corpus by the ids of the
    checkpoint. Raises Refused."""

    def compare() -> tuple[Corpus, list[str], list[str]]:
        remedy = f"begin a new run with --init-from {stored.path}"
        found, new = vocabulary.for_model(
            plan, corpus, stored.tokenizer, path=stored.path, remedy=remedy
        )
        training, allowed = stored.training, asked.new_data
        told = compatibility.compare(
            plan, found.fingerprint, training, path=stored.path, new_data=allowed
        )
        return found, told, new + rest_of_epoch(training, found)

    found, lines, new = world.agree(compare)
    move = compatibility.moved(stored.manifest.layout, layout_of(plan.settings, plan.layout.data))
    threads = compatibility.threads(stored.training, world.device.type, torch.get_num_threads())
    unused = [f"--init-from={asked.init_from} is not used then"] if asked.init_from else []
    for line in [
        f"going on from {stored.path}",
        *unused,
        *([move] if move else []),
        *compatibility.batch(stored.training, stored.manifest.layout, plan),
        *threads,
        *lines,
        *new,
    ]:
        world.say(line)
    return found
