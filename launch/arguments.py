"""Arguments that commands share: a config file and overrides of its settings."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from engine import paths
from engine.config.name_hints import Hint
from engine.config.name_hints import known as known_setting
from engine.errors import UserError
from engine.formatting import BYTE_UNITS
from engine.runs.folder import RunFolder
from engine.runs.resume_candidates import StartOptions, parse_resume_option


class Parser(argparse.ArgumentParser):
    """Refuses in one line instead of leaving the process with its usage; its help ends with
    ``examples``, commands as they are typed."""

    def __init__(
        self, *, prog: str, description: str | None = None, examples: Sequence[str] = ()
    ) -> None:
        lines = [f"example{'s' * (len(examples) > 1)}:", *(f"  {line}" for line in examples)]
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n".join(lines) if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Refuse the first unknown option, before its value is taken for something else."""
        for word in sys.argv[1:] if args is None else args:
            if word == "--":
                break
            option = _OPTION.match(word)
            if option and not any(
                known_option.startswith(option[0]) for known_option in self._option_string_actions
            ):
                self.error(self._unknown(option[0]))
        return super().parse_known_args(args, namespace)

    def _unknown(self, option: str) -> str:
        """The message for an unknown option: a longer or shorter name of one there is, a setting,
        or an option of similar spelling."""
        parts = set(option.strip("-").split("-"))
        options = [one for one in self._option_string_actions if one.startswith("--")]
        near = [one for one in options if {*one.strip("-").split("-")} < parts]
        hint = Hint()
        if not near and any("KEY=VALUE" in str(action.metavar) for action in self._actions):
            hint = known_setting(option.strip("-"))
        if hint.why:
            return f"{option} is not an option: {hint.why}"
        if hint.settings:
            shown = " or ".join(one if "=" in one else f"{one}=..." for one in hint.settings)
            return f"{option} is not an option; settings have no dashes: did you mean {shown}?"
        near = near or difflib.get_close_matches(option, options, n=1, cutoff=0.7)
        return f"{option} is not an option; " + (
            f"did you mean {near[0]}?" if near else f"{self.prog} --help lists them"
        )


def path(text: str) -> Path:
    """Expand a path, for argparse; something may be there or not."""
    try:
        return Path(paths.expand(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def file_or_folder(text: str) -> Path:
    """Expand the path of a file or folder to read, for argparse."""
    return _existing(text, paths.FILE, paths.FOLDER)


def folder(text: str) -> Path:
    """Expand the path of a folder to read, for argparse."""
    return _existing(text, paths.FOLDER)


def initial_weights(text: str) -> Path:
    """Expand the path of a model, for argparse; a run that is resumed does not need it there."""
    found = path(text)
    return _existing(text, paths.FILE, paths.FOLDER) if os.path.lexists(found) else found


def output_file(text: str) -> Path:
    """Expand the path of a file to write, for argparse."""
    found = path(text)
    if problem := paths.problem_of_output(found):
        raise argparse.ArgumentTypeError(f"{text} {problem}")
    return found


def resume(text: str) -> str:
    """Expand the value of --resume where it is a path, for argparse."""
    return text if text in ("auto", "none") else str(path(text))


def _existing(text: str, *kinds: str) -> Path:
    found = path(text)
    if problem := paths.problem_at(found, *kinds):
        raise argparse.ArgumentTypeError(f"{text} {problem}")
    return found


_OPTION = re.compile(r"--?[A-Za-z][^=\s]*(?=$|=)")
_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*([KMGTP]i?B)")
_DECIMAL_UNITS = {f"{prefix}B": 10 ** (3 * power) for power, prefix in enumerate("KMGTP", start=1)}
_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def add_config(
    parser: argparse.ArgumentParser, *, required: bool, what: str = "the config file"
) -> None:
    """FILE, also as --config FILE, and KEY=VALUE in any order and among the options."""
    metavar = "FILE|KEY=VALUE" if required else "[FILE]|KEY=VALUE"
    parser.add_argument(
        "words",
        nargs="*",
        metavar=metavar,
        help=f"{what}, and settings to override, such as optimizer.lr=3e-4",
    )
    parser.add_argument("--config", type=path, metavar="FILE", help="the config file, by option")


def files_and_overrides(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The files that were named and the overrides, both in their order."""
    files, overrides = _split_words(args.words)
    return ([] if args.config is None else [args.config]) + files, overrides


def run_and_overrides(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """The run's folder, None if none was named, and the overrides in their order.

    Raises UserError when there are two folders.
    """
    folders, overrides = _split_words(args.words)
    if len(folders) > 1:
        raise UserError(f"one run, not {len(folders)}: {' '.join(map(str, folders))}")
    for found in folders:
        if problem := paths.problem_at(found, paths.FOLDER):
            raise UserError(f"{found} {problem}")
    return (folders[0] if folders else None), overrides


def config_and_overrides(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """The config file, None if none was named, and the overrides in their order.

    Raises UserError when there are two files.
    """
    files, overrides = files_and_overrides(args)
    if len(files) > 1:
        raise UserError(f"one config file, not {len(files)}: {' '.join(map(str, files))}")
    return (files[0] if files else None), overrides


def run_to_resume(args: argparse.Namespace) -> RunFolder:
    """The run that --resume names, whose recorded settings are used without a config file.

    Raises UserError where it names none.
    """
    if args.resume in ("auto", "none"):
        raise UserError(
            "which config? --config FILE, or --resume RUN with the settings of that run"
        )
    run, _ = parse_resume_option(args.resume)
    if run is None:
        raise UserError(
            f"--resume={args.resume} is not in a run's folder, which has the settings: name the "
            "config as well"
        )
    return RunFolder(run)


def add_run(parser: argparse.ArgumentParser) -> None:
    """What a training run takes besides its config, however it is started."""
    add_ranks(parser)
    parser.add_argument(
        "--output", type=path, metavar="DIR", help="the run's folder; default: runs/NAME-TIME"
    )
    parser.add_argument(
        "--resume",
        type=resume,
        default="none",
        metavar="auto|none|PATH",
        help="what to continue: the newest run of this config file, nothing (default), or a run's "
        "folder or one of its checkpoints",
    )
    parser.add_argument(
        "--init-from",
        type=initial_weights,
        metavar="PATH",
        help="weights to begin with, where there is nothing to go on from: a run, one of its "
        "checkpoints, what cuboid import or export left, or a Hugging Face folder",
    )
    parser.add_argument(
        "--allow-new-data",
        action="store_true",
        help="go on from a checkpoint though its data, or the order of it, was another",
    )


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """How many processes, and how they talk."""
    parser.add_argument(
        "--gpus",
        type=positive,
        metavar="N",
        help="how many ranks; default: as many as there are GPUs, one copy of the model on a CPU",
    )
    parser.add_argument(
        "--backend",
        choices=["nccl", "gloo"],
        help="what carries messages; default: nccl where each rank has a GPU",
    )


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Where a rank stands that no launcher tells; and, for a launcher of ours, where to note the
    processes that were told to be gone."""
    parser.add_argument(
        "--from_torch",
        action="store_true",
        help="torchrun started this (which is seen without it, too)",
    )
    parser.add_argument("--host", help="the machine of rank 0")
    parser.add_argument("--port", type=int, help="a free port there")
    parser.add_argument("--rank", type=int, help="this process's number, from 0")
    parser.add_argument("--world_size", type=int, help="how many processes there are")
    parser.add_argument(
        "--local-rank",
        "--local_rank",
        type=int,
        metavar="N",
        help="given by torch.distributed.launch, which sets the environment too",
    )
    parser.add_argument("--told", type=path, help=argparse.SUPPRESS)


def add_step(parser: argparse.ArgumentParser) -> None:
    """Which of a run's weights."""
    parser.add_argument(
        "--step",
        default="latest",
        metavar="latest|best|N",
        help="which checkpoint: the newest, the one of the lowest validation loss, or step N's; "
        "default: latest, which is what the run ended with where it saved none",
    )


def run_arguments(
    args: argparse.Namespace, config: Path | None, overrides: Sequence[str]
) -> list[str]:
    """The arguments that hand a run's config, if it is not that of the run to resume, and what
    ``add_run`` took on to its ranks."""
    handed = [] if config is None else [f"--config={config}"]
    handed += [*overrides, f"--resume={args.resume}"]
    if args.allow_new_data:
        handed.append("--allow-new-data")
    for name in ("output", "backend", "init-from"):
        value = getattr(args, name.replace("-", "_"))
        if value is not None:
            handed.append(f"--{name}={value}")
    return handed


def _split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Paths and overrides. Raises UserError for a word that is neither."""
    overrides = [word for word in words if _OVERRIDE.match(word)]
    try:
        return [path(word) for word in words if not _OVERRIDE.match(word)], overrides
    except argparse.ArgumentTypeError as error:
        raise UserError(str(error)) from None


def start_options(args: argparse.Namespace) -> StartOptions:
    """Where the run is to begin. Raises UserError where its options contradict each other."""
    if args.init_from is not None and args.resume not in ("none", "auto"):
        raise UserError(
            f"--resume={args.resume} goes on with a run, and --init-from={args.init_from} begins "
            "one: give one of them"
        )
    return StartOptions(
        resume=args.resume,
        output=args.output,
        new_data=args.allow_new_data,
        init_from=args.init_from,
    )


def not_negative(text: str) -> int:
    """An integer of 0 or more, for argparse."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """An integer of 1 or more, for argparse."""
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    with suppress(ValueError):
        number = int(text)
        if number >= least:
            return number
    raise argparse.ArgumentTypeError(f"{text} is not {least} or more")


def byte_size(text: str) -> int:
    """Parse a size such as '80GiB' (2**30 bytes) or '80GB' (10**9 bytes) (type for argparse)."""
    match = _SIZE.fullmatch(text.strip())
    number = float(match[1]) * (BYTE_UNITS | _DECIMAL_UNITS)[match[2]] if match else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 80GiB or 24GB")
    return int(number)
