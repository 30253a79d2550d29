"""Command-line arguments that several commands share, and their types for argparse."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from engine.errors import UserError
from engine.files import paths
from engine.runs.folder import RunFolder
from engine.runs.start_candidates import StartOptions, names_run, parse_resume_option
from launch.number_types import positive
from launch.parser import SETTING


def path(text: str) -> Path:
    """Expand a path, which need not exist (type for argparse)."""
    try:
        return Path(paths.expand(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def file_or_folder(text: str) -> Path:
    """Expand the path of an existing file or folder (type for argparse)."""
    return _existing(text, paths.FILE, paths.FOLDER)


def folder(text: str) -> Path:
    """Expand the path of an existing folder (type for argparse)."""
    return _existing(text, paths.FOLDER)


def initial_weights(text: str) -> Path:
    """Expand the path of a model (type for argparse). It may be missing: a resume ignores it."""
    expanded = path(text)
    return _existing(text, paths.FILE, paths.FOLDER) if os.path.lexists(expanded) else expanded


def output_file(text: str) -> Path:
    """Expand the path of a file to write (type for argparse)."""
    expanded = path(text)
    if problem := paths.problem_of_output(expanded):
        raise argparse.ArgumentTypeError(f"{text} {problem}")
    return expanded


def resume(text: str) -> str:
    """Expand the value of --resume if it is a path (type for argparse)."""
    return str(path(text)) if names_run(text) else text


def _existing(text: str, *kinds: str) -> Path:
    expanded = path(text)
    if problem := paths.problem_at(expanded, *kinds):
        raise argparse.ArgumentTypeError(f"{text} {problem}")
    return expanded


def add_config(
    parser: argparse.ArgumentParser, *, required: bool, what: str = "the config file"
) -> None:
    """Add FILE (or --config FILE) and KEY=VALUE, in any order and between the options."""
    metavar = "FILE|KEY=VALUE" if required else "[FILE]|KEY=VALUE"
    parser.add_argument(
        "words",
        nargs="*",
        metavar=metavar,
        help=f"{what}, and settings that override it, such as optimizer.lr=3e-4",
    )
    parser.add_argument("--config", type=path, metavar="FILE", help="config file, as an option")


def files_and_overrides(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """Return the config files and the overrides, both in the order given."""
    files, overrides = _split_words(args.words)
    return ([] if args.config is None else [args.config]) + files, overrides


def run_and_overrides(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """Return the run folder (None if not given) and the overrides in the order given.

    Raises:
        UserError: there is more than one folder, or it does not exist.
    """
    folders, overrides = _split_words(args.words)
    if len(folders) > 1:
        raise UserError(f"expected one run, got {len(folders)}: {' '.join(map(str, folders))}")
    for each in folders:
        if problem := paths.problem_at(each, paths.FOLDER):
            raise UserError(f"{each} {problem}")
    return (folders[0] if folders else None), overrides


def config_and_overrides(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """Return the config file (None if not given) and the overrides in the order given.

    Raises:
        UserError: there is more than one file.
    """
    files, overrides = files_and_overrides(args)
    if len(files) > 1:
        message = f"expected one config file, got {len(files)}: {' '.join(map(str, files))}"
        if data := [file for file in files if file.suffix != ".py"]:
            message += f"; if the data is in {data[0]}, set data.path={quote(str(data[0]))}"
        raise UserError(message)
    return (files[0] if files else None), overrides


def run_to_resume(args: argparse.Namespace) -> RunFolder:
    """Return the run that --resume names; its recorded settings are used if no config is given.

    Raises:
        UserError: --resume names no run.
    """
    if not names_run(args.resume):
        raise UserError(
            "no config file given; pass --config FILE, or --resume RUN to use the settings that "
            "the run recorded"
        )
    run, _ = parse_resume_option(args.resume)
    if run is None:
        raise UserError(
            f"--resume={args.resume} is not in a run folder, so it has no recorded settings; pass "
            "--config FILE as well"
        )
    return RunFolder(run)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training run, which ``cuboid train`` and train_gpt.py share."""
    add_ranks(parser)
    parser.add_argument(
        "--output", type=path, metavar="DIR", help="run folder; default: runs/NAME-TIME"
    )
    parser.add_argument(
        "--resume",
        type=resume,
        metavar="auto|none|PATH",
        help="checkpoint to resume from: auto (newest run of this config file), none, or a run or "
        "checkpoint folder; default: auto with checkpoint.auto_resume=True, else none",
    )
    parser.add_argument(
        "--init-from",
        type=initial_weights,
        metavar="PATH",
        help="initial weights: a run, a checkpoint, a folder or file that cuboid import or export "
        "wrote, or a Hugging Face folder; ignored if the run resumes from a checkpoint",
    )
    parser.add_argument(
        "--allow-new-data",
        action="store_true",
        help="resume even if the data or the sample order changed",
    )


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """Add --gpus, the number of ranks, and --backend, their communication backend."""
    parser.add_argument(
        "--gpus",
        type=positive,
        metavar="N",
        help="number of ranks; default: one per GPU; without a GPU, one copy of the model",
    )
    parser.add_argument(
        "--backend",
        choices=["nccl", "gloo"],
        help="communication backend; default: nccl if every rank has its own GPU, else gloo",
    )


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that state a rank's position if no launcher's environment does, and the
    hidden option of cuboid's own launcher: the file in which ranks record the PIDs of lost ranks.
    """
    parser.add_argument(
        "--from_torch",
        action="store_true",
        help="ranks were started by torchrun (detected automatically; accepted for compatibility)",
    )
    parser.add_argument("--host", help="machine of rank 0")
    parser.add_argument("--port", type=int, help="free port on that machine")
    parser.add_argument("--rank", type=int, help="rank of this process, from 0")
    parser.add_argument("--world_size", type=int, help="number of ranks")
    parser.add_argument(
        "--local-rank",
        "--local_rank",
        type=int,
        metavar="N",
        help="passed by torch.distributed.launch; ignored, since the environment states it too",
    )
    parser.add_argument("--lost-pids-file", type=path, help=argparse.SUPPRESS)


def add_step(parser: argparse.ArgumentParser) -> None:
    """Add --step, which chooses a run's weights."""
    parser.add_argument(
        "--step",
        default="latest",
        metavar="latest|best|N",
        help="which checkpoint: latest (default; the final weights if the run saved no "
        "checkpoint), best (lowest loss, see checkpoint.best_by) or a step number",
    )


def run_arguments(
    args: argparse.Namespace, config: Path | None, overrides: Sequence[str]
) -> list[str]:
    """Return the arguments for the ranks: the config (None: the run to resume has recorded it), the
    overrides and the options of ``add_run``."""
    arguments = [] if config is None else [f"--config={config}"]
    arguments += overrides
    if args.allow_new_data:
        arguments.append("--allow-new-data")
    return arguments + given_options(args, "resume", "output", "backend", "init_from")


def given_options(args: argparse.Namespace, *names: str) -> list[str]:
    """Return the options that are not None as ``--name=value``, for the ranks."""
    return [
        f"--{name.replace('_', '-')}={value}"
        for name in names
        if (value := getattr(args, name)) is not None
    ]


def _split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split words into paths and overrides. Raises UserError for a word that is neither."""
    overrides = [override[1] for word in words if (override := SETTING.match(word))]
    try:
        return [path(word) for word in words if not SETTING.match(word)], overrides
    except argparse.ArgumentTypeError as error:
        raise UserError(str(error)) from None


def start_options(args: argparse.Namespace) -> StartOptions:
    """Return the options that decide where the run starts. Raises UserError if they conflict."""
    if args.init_from is not None and names_run(args.resume):
        raise UserError(
            f"--resume={args.resume} continues a run, but --init-from={args.init_from} starts a "
            "new one; pass only one of them"
        )
    return StartOptions(
        resume=args.resume,
        output=args.output,
        new_data=args.allow_new_data,
        init_from=args.init_from,
    )
