"""The ways in which a run may begin, by what is asked and what there is on the disk. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from shlex import quote

from engine.checkpoint.directory import Shelf
from engine.errors import Refused
from engine.plan import Plan
from engine.runs.folder import RunFolder, runs
from engine.runs.plan_from_run import identity, recorded_settings

FEW = 3
"""Runs of other config files that are named one by one."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asks for: to go on from 'auto', 'none' or a path (a run's folder or one of its
    checkpoints), into ``output``, and with other data than the checkpoint's if need be; and where
    there is nothing to go on from, to begin with the weights at ``init_from``."""

    resume: str = "none"
    output: Path | None = None
    new_data: bool = False
    init_from: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to begin: in the folder of a run there is (None: one is made), from the first of the
    checkpoints that verifies. Where none does, the next way is tried, or this one starts over.

    ``remarks`` are for the user before this way is tried; ``finished`` says why the run has nothing
    left to do, where it has not.
    """

    home: str | None
    checkpoints: list[str]
    starts_over: bool = False
    remarks: list[str] = field(default_factory=list)
    finished: str = ""


def ways(run_id: str, plan: Plan, asked: Asked) -> Iterator[Way]:
    """Yield the ways there are to begin, the best first.

    Raises Refused for a path that is no run, one without a checkpoint, or a run that is finished.
    """
    output = output_of(plan, asked)
    named, source = read_resume(asked.resume)
    home = own_folder(run_id, plan.settings.name, output, asked.resume)
    if home is not None:
        yield _in(home)
        if source and home != named:
            yield Way(home=str(home), checkpoints=source)
        yield Way(home=str(home), checkpoints=[], starts_over=True)
    elif asked.resume == "none":
        yield Way(home=None, checkpoints=[], starts_over=True)
    elif asked.resume != "auto":
        if named is not None:
            _refuse_useless(plan, named, source)
        stays = named is not None and output in (None, named)
        yield Way(home=str(named) if stays else None, checkpoints=source)
    elif output is not None and RunFolder(output).read_status():
        theirs, config = identity(RunFolder(output)), str(plan.config.path)
        other = theirs not in (None, config)
        remarks = [f"{output} is a run of {theirs}, and goes on with {config}"] if other else []
        way = _in(output, remarks=remarks)
        yield replace(way, finished=_finished(plan, output, way.checkpoints))
        yield Way(home=str(output), checkpoints=[], starts_over=True)
    elif output is not None:
        yield Way(home=None, checkpoints=[], starts_over=True)
    else:
        yield from _of_this_config(plan)


def own_folder(run_id: str, name: str, output: Path | None, resume: str) -> Path | None:
    """Find the folder of a launch that was here before: a restart by torchrun, a requeued job."""
    named = run_named(resume)
    chosen = [path for path in (output, named) if path is not None]
    for home in chosen or [folder.path for folder in runs(name=name)]:
        if RunFolder(home).read_status().get("run_id") == run_id:
            return home
    return None


def run_named(resume: str) -> Path | None:
    """Find the run that --resume names by its folder or one of its checkpoints; None where it names
    no run."""
    if resume in ("auto", "none"):
        return None
    path = Path(resume)
    run = path.parent.parent if _is_checkpoint(path) else path
    return run if RunFolder(run).read_status() else None


def _of_this_config(plan: Plan) -> Iterator[Way]:
    """Yield the runs of the plan's config file, the newest first, then a new run. A run of another
    file of the same name is skipped."""
    remarks, skipped, config = list[str](), 0, str(plan.config.path)
    for folder in runs(name=plan.settings.name):
        theirs = identity(folder)
        if theirs is not None and theirs != config:
            skipped += 1
            if skipped <= FEW:
                remarks.append(
                    f"{folder.path} is skipped: it is a run of {theirs}, and this is {config}; "
                    f"--resume {quote(str(folder.path))} continues it"
                )
            continue
        if skipped > FEW:
            remarks.append(f"{skipped - FEW} more runs of other config files are skipped")
        if theirs is None:
            remarks.append(f"{folder.path} does not record its config file, and is taken by name")
        way = _in(folder.path, remarks=remarks)
        yield replace(way, finished=_finished(plan, folder.path, way.checkpoints))
        remarks, skipped = [], 0
    if skipped:
        remarks.append(f"no run of {config} is left to continue: a new run begins")
    yield Way(home=None, checkpoints=[], starts_over=True, remarks=remarks)


def _refuse_useless(plan: Plan, run: Path, checkpoints: list[str]) -> None:
    """Raises Refused for a run that has nothing to continue from, or nothing left to do."""
    if finished := _finished(plan, run, checkpoints):
        raise Refused(finished)
    if not checkpoints:
        status = RunFolder(run).read_status()
        raise Refused(
            f"{run} has no checkpoint to continue from ({status.get('state')} at step "
            f"{status.get('step')}): train its config without --resume"
        )


def _finished(plan: Plan, run: Path, checkpoints: list[str]) -> str:
    """Explain that a run is finished, and how more can be trained; "" where it is not."""
    status, settings = RunFolder(run).read_status(), plan.settings
    if status.get("state") != "finished":
        return ""
    weights = f"--init-from {quote(str(run))} begins a new run with its weights"
    if not checkpoints:
        return f"{run} is finished at step {status.get('step')} and kept no checkpoint: {weights}"
    done = int(Path(checkpoints[0]).name.removeprefix("step-"))
    if settings.max_steps is not None:
        over, more = done >= settings.max_steps, f"MAX_STEPS=N, with N above {done}"
    else:
        then = _recorded(run, "num_epochs", "max_steps")
        over = then == (settings.num_epochs, None) and status.get("step") == done
        more = f"NUM_EPOCHS=N, with N above {settings.num_epochs}, or MAX_STEPS=N"
    if not over:
        return ""
    return f"{run} is finished at step {done}: {more}, trains it further; {weights}"


def _in(home: Path, *, remarks: list[str] | None = None) -> Way:
    shelf = Shelf(RunFolder(home).checkpoints)
    newest_first = [str(shelf.folder(step)) for step in reversed(shelf.steps())]
    return Way(home=str(home), checkpoints=newest_first, remarks=remarks or [])


def read_resume(resume: str) -> tuple[Path | None, list[str]]:
    """Find the run that --resume names, if any, and the checkpoints to try. Raises Refused."""
    if resume in ("auto", "none"):
        return None, []
    path, named = Path(resume), run_named(resume)
    if _is_checkpoint(path):
        return named, [resume]
    if named is not None:
        return named, _in(named).checkpoints
    state = "is not there" if not path.exists() else "is neither a run's folder nor a checkpoint"
    raise Refused(f"--resume={resume} {state} (RUN, or RUN/checkpoints/step-N of it)")


def _is_checkpoint(path: Path) -> bool:
    return re.fullmatch(r"step-\d{8,}", path.name) is not None and path.is_dir()


def output_of(plan: Plan, asked: Asked) -> Path | None:
    """The folder that was chosen for the run; None: the run's that is resumed, or runs/NAME-TIME.

    A ``log.dir`` that the resumed run had as well chooses nothing: its folder may have moved."""
    named, chosen = run_named(asked.resume), plan.settings.log.dir
    if asked.output is not None or chosen is None:
        return asked.output
    return None if named is not None and _recorded(named, "log.dir") == chosen else Path(chosen)


def _recorded(run: Path, *names: str) -> object:
    """Settings that the run was trained with last; None where it recorded none."""
    try:
        return attrgetter(*names)(recorded_settings(RunFolder(run)))
    except Refused:
        return None
