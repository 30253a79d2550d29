"""The ``cuboid`` command. Every file in ``launch/commands`` is a subcommand.

A subcommand is a module with:
- a docstring, whose first line is its help,
- ``EXAMPLES``: complete command lines, shown at the end of its help,
- ``add_arguments(parser)``,
- ``run(args, environ) -> int``, which returns the exit code: 0 done, 1 the run or a check failed, 2
  the user's input was rejected. It imports torch inside: commands without torch start fast.
"""

from __future__ import annotations

import difflib
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from importlib import metadata

from engine import discover
from engine.errors import ConfigError, RunError, UserError
from engine.files.full_disk import full_disk_error
from engine.world.signals import handle_signals, raise_keyboard_interrupt
from launch.parser import Parser
from launch.standard_streams import install_unfailing_streams

COMMANDS = "launch.commands"


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run a command line and return its exit code. A failed write to stdout or stderr does not
    change the code."""
    install_unfailing_streams()
    argv = sys.argv[1:] if argv is None else argv
    try:
        with handle_signals(raise_keyboard_interrupt):
            return _dispatch(list(argv), environ)
    except (ConfigError, UserError) as error:
        print(error, file=sys.stderr)
        return 2
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        if (problem := full_disk_error(error)) is None:
            raise
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        if str(stop):
            print(f"stopped by {stop}", file=sys.stderr)
        return 1


def _dispatch(argv: list[str], environ: Mapping[str, str]) -> int:
    names = discover.module_names(COMMANDS)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage(names))
        return 0
    if argv[0] == "--version":
        print(f"cuboid {metadata.version('cuboid')}")
        return 0
    name, *rest = argv
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(names)}"
        raise UserError(f"cuboid: {name} is not a command; {hint}")
    command = discover.load(COMMANDS, name)
    code: int = command.run(parser_of(name).parse_intermixed_args(rest), environ)
    return code


def parser_of(name: str) -> Parser:
    """Return the argument parser of a command."""
    command = discover.load(COMMANDS, name)
    parser = Parser(prog=f"cuboid {name}", description=command.__doc__, examples=command.EXAMPLES)
    command.add_arguments(parser)
    return parser


def _usage(names: list[str]) -> str:
    width = max(map(len, names)) + 2
    lines = [
        textwrap.fill(
            (discover.load(COMMANDS, name).__doc__ or "").splitlines()[0],
            shutil.get_terminal_size().columns,
            initial_indent=f"  {name:{width}}",
            subsequent_indent=" " * (width + 2),
        )
        for name in names
    ]
    return "\n".join(
        [
            "usage: cuboid COMMAND ...",
            "",
            *lines,
            "",
            "exit codes: 0 done; 1 failed or stopped; 2 the input was rejected",
            "cuboid COMMAND --help lists the options of a command.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
