"""The ways in which a run may begin, by what is asked and what there is on the disk. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from shlex import quote

from engine.checkpoint.directory import CheckpointDirectory
from engine.errors import UserError
from engine.plan import Plan
from engine.runs.folder import RunFolder, list_runs
from engine.runs.plan_from_run import recorded_config_path, recorded_settings

MAX_LISTED = 3
"""Runs of other config files that are named one by one."""


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What the user asks for: to go on from 'auto', 'none' or a path (a run's folder or one of its
    checkpoints), into ``output``, and with other data than the checkpoint's if need be; and where
    there is nothing to go on from, to begin with the weights at ``init_from``."""

    resume: str = "none"
    output: Path | None = None
    new_data: bool = False
    init_from: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ResumeCandidate:
    """A way to begin: in the folder of a run there is (None: one is made), from the first of the
    checkpoints that verifies. Where none does, the next way is tried, or this one starts over.

    ``remarks`` are for the user before this way is tried; ``finished`` says why the run has nothing
    left to do, where it has not.
    """

    run_folder: str | None
    checkpoints: list[str]
    starts_over: bool = False
    remarks: list[str] = field(default_factory=list)
    finished: str = ""


def resume_candidates(run_id: str, plan: Plan, options: StartOptions) -> Iterator[ResumeCandidate]:
    """Yield the ways there are to begin, the best first.

    Raises UserError for a path that is no run, one without a checkpoint, or a run that is finished.
    """
    output = chosen_output(plan, options)
    named, source = parse_resume_option(options.resume)
    run_folder = folder_of_launch(run_id, plan.settings.name, output, options.resume)
    if run_folder is not None:
        yield _candidate_in(run_folder)
        if source and run_folder != named:
            yield ResumeCandidate(run_folder=str(run_folder), checkpoints=source)
        yield ResumeCandidate(run_folder=str(run_folder), checkpoints=[], starts_over=True)
    elif options.resume == "none":
        yield ResumeCandidate(run_folder=None, checkpoints=[], starts_over=True)
    elif options.resume != "auto":
        if named is not None:
            _require_continuable(plan, named, source)
        stays = named is not None and output in (None, named)
        yield ResumeCandidate(run_folder=str(named) if stays else None, checkpoints=source)
    elif output is not None and RunFolder(output).read_status():
        recorded, config = recorded_config_path(RunFolder(output)), str(plan.config.path)
        other = recorded not in (None, config)
        remarks = [f"{output} is a run of {recorded}, and goes on with {config}"] if other else []
        way = _candidate_in(output, remarks=remarks)
        yield replace(way, finished=_finished_message(plan, output, way.checkpoints))
        yield ResumeCandidate(run_folder=str(output), checkpoints=[], starts_over=True)
    elif output is not None:
        yield ResumeCandidate(run_folder=None, checkpoints=[], starts_over=True)
    else:
        yield from _runs_of_config(plan)


def folder_of_launch(run_id: str, name: str, output: Path | None, resume: str) -> Path | None:
    """Find the folder of a launch that was here before: a restart by torchrun, a requeued job."""
    named = run_of_resume_option(resume)
    chosen = [path for path in (output, named) if path is not None]
    for run_folder in chosen or [folder.path for folder in list_runs(name=name)]:
        if RunFolder(run_folder).read_status().get("run_id") == run_id:
            return run_folder
    return None


def run_of_resume_option(resume: str) -> Path | None:
    """Find the run that --resume names by its folder or one of its checkpoints; None where it names
    no run."""
    if resume in ("auto", "none"):
        return None
    path = Path(resume)
    run = path.parent.parent if _is_checkpoint(path) else path
    return run if RunFolder(run).read_status() else None


def _runs_of_config(plan: Plan) -> Iterator[ResumeCandidate]:
    """Yield the runs of the plan's config file, the newest first, then a new run. A run of another
    file of the same name is skipped."""
    remarks, skipped, config = list[str](), 0, str(plan.config.path)
    for folder in list_runs(name=plan.settings.name):
        theirs = recorded_config_path(folder)
        if theirs is not None and theirs != config:
            skipped += 1
            if skipped <= MAX_LISTED:
                remarks.append(
                    f"{folder.path} is skipped: it is a run of {theirs}, and this is {config}; "
                    f"--resume {quote(str(folder.path))} continues it"
                )
            continue
        if skipped > MAX_LISTED:
            remarks.append(f"{skipped - MAX_LISTED} more runs of other config files are skipped")
        if theirs is None:
            remarks.append(f"{folder.path} does not record its config file, and is taken by name")
        candidate = _candidate_in(folder.path, remarks=remarks)
        yield replace(
            candidate, finished=_finished_message(plan, folder.path, candidate.checkpoints)
        )
        remarks, skipped = [], 0
    if skipped:
        remarks.append(f"no run of {config} is left to continue: a new run begins")
    yield ResumeCandidate(run_folder=None, checkpoints=[], starts_over=True, remarks=remarks)


def _require_continuable(plan: Plan, run: Path, checkpoints: list[str]) -> None:
    """Raises UserError for a run that has nothing to continue from, or nothing left to do."""
    if finished := _finished_message(plan, run, checkpoints):
        raise UserError(finished)
    if not checkpoints:
        status = RunFolder(run).read_status()
        raise UserError(
            f"{run} has no checkpoint to continue from ({status.get('state')} at step "
            f"{status.get('step')}): train its config without --resume"
        )


def _finished_message(plan: Plan, run: Path, checkpoints: list[str]) -> str:
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
        then = _recorded_values(run, "num_epochs", "max_steps")
        over = then == (settings.num_epochs, None) and status.get("step") == done
        more = f"NUM_EPOCHS=N, with N above {settings.num_epochs}, or MAX_STEPS=N"
    if not over:
        return ""
    return f"{run} is finished at step {done}: {more}, trains it further; {weights}"


def _candidate_in(run_folder: Path, *, remarks: list[str] | None = None) -> ResumeCandidate:
    checkpoints = CheckpointDirectory(RunFolder(run_folder).checkpoints)
    newest_first = [str(checkpoints.folder(step)) for step in reversed(checkpoints.steps())]
    return ResumeCandidate(
        run_folder=str(run_folder), checkpoints=newest_first, remarks=remarks or []
    )


def parse_resume_option(resume: str) -> tuple[Path | None, list[str]]:
    """Find the run that --resume names, if any, and the checkpoints to try. Raises UserError."""
    if resume in ("auto", "none"):
        return None, []
    path, named = Path(resume), run_of_resume_option(resume)
    if _is_checkpoint(path):
        return named, [resume]
    if named is not None:
        return named, _candidate_in(named).checkpoints
    state = "is not there" if not path.exists() else "is neither a run's folder nor a checkpoint"
    raise UserError(f"--resume={resume} {state} (RUN, or RUN/checkpoints/step-N of it)")


def _is_checkpoint(path: Path) -> bool:
    return re.fullmatch(r"step-\d{8,}", path.name) is not None and path.is_dir()


def chosen_output(plan: Plan, options: StartOptions) -> Path | None:
    """The folder that was chosen for the run; None: the run's that is resumed, or runs/NAME-TIME.

    A ``log.dir`` that the resumed run had as well chooses nothing: its folder may have moved."""
    named, chosen = run_of_resume_option(options.resume), plan.settings.log.dir
    if options.output is not None or chosen is None:
        return options.output
    return (
        None if named is not None and _recorded_values(named, "log.dir") == chosen else Path(chosen)
    )


def _recorded_values(run: Path, *names: str) -> object:
    """Settings that the run was trained with last; None where it recorded none."""
    try:
        return attrgetter(*names)(recorded_settings(RunFolder(run)))
    except UserError:
        return None
