"""Lists the runs on the disk that a start may resume, by the user's options. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from shlex import quote
from typing import TypeGuard

from engine.checkpoint.directory import CheckpointDirectory, step_of
from engine.errors import UserError
from engine.plan import Plan
from engine.runs.folder import RunFolder, list_runs
from engine.runs.plan_from_run import recorded_config_path, recorded_settings

MAX_LISTED = 3
"""The number of skipped runs that are named; more are only counted."""


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """The user's options on where a run starts."""

    resume: str | None = None
    """'auto', 'none', or the path of a run's folder or of one of its checkpoints; None: 'auto' if
    checkpoint.auto_resume is set, else 'none'."""
    output: Path | None = None
    """The folder of the run."""
    new_data: bool = False
    """Resume even if the data or the order of samples has changed."""
    init_from: Path | None = None
    """The initial weights of a run that does not resume."""


@dataclass(frozen=True, kw_only=True)
class StartCandidate:
    """A run that may be resumed, or a new run. If none of its checkpoints is intact, the run starts
    at step 0 (``starts_over``) or the next candidate is tried."""

    run_folder: str | None
    """An existing run's folder; None to create one."""
    checkpoints: list[str]
    """The checkpoints to try, in this order."""
    starts_over: bool = False
    remarks: list[str] = field(default_factory=list)
    """Lines to print before the candidate is tried."""
    finished: str = ""
    """The message about a run that is finished; "" for any other run."""


def start_candidates(run_id: str, plan: Plan, options: StartOptions) -> Iterator[StartCandidate]:
    """Yield the runs to try to resume, the best first.

    Raises UserError if --resume names no run, a run without a checkpoint, or a finished run.
    """
    resume = resume_or_default(options, plan)
    output = chosen_output(plan, options)
    named, checkpoints = parse_resume_option(resume)
    run_folder = folder_of_launch(run_id, plan.settings.name, output, resume)
    if run_folder is not None:
        yield _candidate_in(run_folder)
        if checkpoints and run_folder != named:
            yield StartCandidate(run_folder=str(run_folder), checkpoints=checkpoints)
        yield StartCandidate(run_folder=str(run_folder), checkpoints=[], starts_over=True)
    elif resume == "none":
        yield StartCandidate(run_folder=None, checkpoints=[], starts_over=True)
    elif resume != "auto":
        if named is not None:
            _require_continuable(plan, named, checkpoints)
        stays = named is not None and output in (None, named)
        yield StartCandidate(run_folder=str(named) if stays else None, checkpoints=checkpoints)
    elif output is not None and RunFolder(output).read_status():
        recorded, config = recorded_config_path(RunFolder(output)), str(plan.config.path)
        other = recorded not in (None, config)
        remarks = [f"{output} is a run of {recorded}; it continues with {config}"] if other else []
        candidate = _candidate_in(output, remarks=remarks)
        finished = _finished_message(plan, output, candidate.checkpoints)
        yield replace(candidate, finished=finished)
        yield StartCandidate(run_folder=str(output), checkpoints=[], starts_over=True)
    elif output is not None:
        yield StartCandidate(run_folder=None, checkpoints=[], starts_over=True)
    else:
        yield from _runs_of_config(plan)


def resume_or_default(options: StartOptions, plan: Plan) -> str:
    """Return the value of --resume; if it is not given, 'auto' or 'none', as the config states."""
    default = "auto" if plan.settings.checkpoint.auto_resume else "none"
    return options.resume or default


def names_run(resume: str | None) -> TypeGuard[str]:
    """Return whether --resume is the path of a run or of a checkpoint."""
    return resume not in (None, "auto", "none")


def folder_of_launch(
    run_id: str, name: str, output: Path | None, resume: str | None
) -> Path | None:
    """Find the folder of a restarted launch (by torchrun, a queue); None if the launch is new."""
    named = run_of_resume_option(resume)
    chosen = [path for path in (output, named) if path is not None]
    for run_folder in chosen or [folder.path for folder in list_runs(name=name)]:
        if RunFolder(run_folder).read_status().get("run_id") == run_id:
            return run_folder
    return None


def run_of_resume_option(resume: str | None) -> Path | None:
    """Find the run that --resume names by its folder or one of its checkpoints; None if it names
    no run."""
    if not names_run(resume):
        return None
    path = Path(resume)
    run = path.parent.parent if _is_checkpoint(path) else path
    return run if RunFolder(run).read_status() else None


def _runs_of_config(plan: Plan) -> Iterator[StartCandidate]:
    """Yield the runs of the plan's config file, the newest first, then a new run. Runs of other
    config files with the same name are skipped."""
    remarks, skipped, config = list[str](), 0, str(plan.config.path)
    for folder in list_runs(name=plan.settings.name):
        recorded = recorded_config_path(folder)
        if recorded is not None and recorded != config:
            skipped += 1
            if skipped <= MAX_LISTED:
                remarks.append(
                    f"skipping {folder.path}: it is a run of {recorded}, not of {config}; "
                    f"--resume {quote(str(folder.path))} continues it"
                )
            continue
        if skipped > MAX_LISTED:
            remarks.append(f"skipping {skipped - MAX_LISTED} more runs of other config files")
        if recorded is None:
            remarks.append(f"{folder.path} records no config file; it is selected by its name")
        candidate = _candidate_in(folder.path, remarks=remarks)
        finished = _finished_message(plan, folder.path, candidate.checkpoints)
        yield replace(candidate, finished=finished)
        remarks, skipped = [], 0
    if skipped:
        remarks.append(f"{config} has no run to continue: starting a new one")
    yield StartCandidate(run_folder=None, checkpoints=[], starts_over=True, remarks=remarks)


def _require_continuable(plan: Plan, run: Path, checkpoints: list[str]) -> None:
    """Raise UserError if the run has no checkpoint, or is finished."""
    if finished := _finished_message(plan, run, checkpoints):
        raise UserError(finished)
    if not checkpoints:
        status = RunFolder(run).read_status()
        raise UserError(
            f"{run} has no checkpoint to resume from ({status.get('state')} at step "
            f"{status.get('step')}); train its config without --resume"
        )


def _finished_message(plan: Plan, run: Path, checkpoints: list[str]) -> str:
    """Return a message that the run is finished and can be trained further by other options; "" if
    it is not finished."""
    status, settings = RunFolder(run).read_status(), plan.settings
    if status.get("state") != "finished":
        return ""
    weights = f"--init-from {quote(str(run))} starts a new run with its weights"
    if not checkpoints:
        return f"{run} is finished at step {status.get('step')} and has no checkpoint: {weights}"
    done = step_of(Path(checkpoints[0]))
    assert done is not None
    if settings.max_steps is not None:
        over, more = done >= settings.max_steps, f"MAX_STEPS=N, with N above {done}"
    else:
        recorded = _recorded_values(run, "num_epochs", "max_steps")
        over = recorded == (settings.num_epochs, None) and status.get("step") == done
        more = f"NUM_EPOCHS=N, with N above {settings.num_epochs}, or MAX_STEPS=N"
    if not over:
        return ""
    return f"{run} is finished at step {done}: {more}, trains it further; {weights}"


def _candidate_in(run_folder: Path, *, remarks: list[str] | None = None) -> StartCandidate:
    """Return the candidate with all checkpoints of a run, the latest first."""
    checkpoints = CheckpointDirectory(RunFolder(run_folder).checkpoints)
    latest_first = [str(checkpoints.folder(step)) for step in reversed(checkpoints.steps())]
    return StartCandidate(
        run_folder=str(run_folder), checkpoints=latest_first, remarks=remarks or []
    )


def parse_resume_option(resume: str) -> tuple[Path | None, list[str]]:
    """Return the run that --resume names, if any, and the checkpoints to try. Raises UserError if
    it names neither a run nor a checkpoint."""
    if not names_run(resume):
        return None, []
    path, named = Path(resume), run_of_resume_option(resume)
    if _is_checkpoint(path):
        return named, [resume]
    if named is not None:
        return named, _candidate_in(named).checkpoints
    problem = "does not exist" if not path.exists() else "is neither a run nor a checkpoint"
    raise UserError(f"--resume={resume} {problem}; pass RUN or RUN/checkpoints/step-N")


def _is_checkpoint(path: Path) -> bool:
    return step_of(path) is not None and path.is_dir()


def chosen_output(plan: Plan, options: StartOptions) -> Path | None:
    """Return the folder that --output or ``log.dir`` sets for the run. None: the folder of the
    resumed run, or a new runs/NAME-TIME.

    A ``log.dir`` that the resumed run recorded, too, has no effect: the run's folder may have
    moved.
    """
    named, chosen = run_of_resume_option(options.resume), plan.settings.log.dir
    if options.output is not None or chosen is None:
        return options.output
    if named is not None and _recorded_values(named, "log.dir") == chosen:
        return None
    return Path(chosen)


def _recorded_values(run: Path, *names: str) -> object:
    """Return the values of the settings ``names`` in the run's last training; None if the run
    recorded no settings."""
    try:
        return attrgetter(*names)(recorded_settings(RunFolder(run)))
    except UserError:
        return None
