"""The ways in which a run may begin, by what is asked and what there is on the disk. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.shelf import Shelf
from engine.errors import Refused
from engine.plan import Plan
from engine.run_folder import RunFolder, runs


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
    checkpoints that verifies. Where none does, the next way is tried, or this one starts over."""

    home: str | None
    checkpoints: list[str]
    starts_over: bool = False


def ways(run_id: str, plan: Plan, asked: Asked) -> Iterator[Way]:
    """The ways there are to begin, the best first. Raises Refused for a path that is of no use."""
    output = output_of(plan, asked)
    others = [folder.path for folder in runs(name=plan.settings.name)]
    named, source = _read(asked.resume)
    for home in [path for path in (output, named) if path] or others:
        if RunFolder(home).read_status().get("run_id") == run_id:
            yield _in(home)
            if source and home != named:
                yield Way(home=str(home), checkpoints=source)
            yield Way(home=str(home), checkpoints=[], starts_over=True)
            return
    if asked.resume == "none":
        yield Way(home=None, checkpoints=[], starts_over=True)
    elif asked.resume != "auto":
        stays = named is not None and output in (None, named)
        yield Way(home=str(named) if stays else None, checkpoints=source)
    elif output is not None and RunFolder(output).read_status():
        yield _in(output)
        yield Way(home=str(output), checkpoints=[], starts_over=True)
    else:
        yield from [] if output else map(_in, others)
        yield Way(home=None, checkpoints=[], starts_over=True)


def _in(home: Path) -> Way:
    shelf = Shelf(RunFolder(home).checkpoints)
    newest_first = [str(shelf.folder(step)) for step in reversed(shelf.steps())]
    return Way(home=str(home), checkpoints=newest_first)


def _read(resume: str) -> tuple[Path | None, list[str]]:
    """The run that --resume names, if any, and the checkpoints to try."""
    if resume in ("auto", "none"):
        return None, []
    path = Path(resume)
    if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir():
        run = path.parent.parent
        return (run if RunFolder(run).status.is_file() else None), [resume]
    if RunFolder(path).status.is_file():
        return path, _in(path).checkpoints
    raise Refused(
        f"--resume={resume}: neither a run's folder nor a checkpoint (RUN/checkpoints/step-*)"
    )


def output_of(plan: Plan, asked: Asked) -> Path | None:
    """The folder that was chosen for the run; None: runs/NAME-TIME."""
    return asked.output or (Path(plan.settings.log.dir) if plan.settings.log.dir else None)
