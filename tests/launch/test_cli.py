"""The cuboid command: its commands, its exit codes, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from engine import discover
from engine.config.errors import ConfigError, Problem
from engine.errors import Failed, Refused
from launch import cli

COMMANDS = discover.names(cli.COMMANDS)


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_the_usage_names_every_command(argv, capsys):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_in_one_line(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    usage = capsys.readouterr().out
    assert usage.startswith(f"usage: cuboid {name}")
    summary = (sys.modules[f"{cli.COMMANDS}.{name}"].__doc__ or "").splitlines()[0]
    assert summary.endswith(".")
    assert len(summary) < 80


def test_an_unknown_command_is_refused_with_a_guess(capsys):
    assert cli.main(["valdiate"]) == 2
    assert capsys.readouterr().err == "cuboid: valdiate is not a command; did you mean validate?\n"
    assert cli.main(["frobnicate"]) == 2
    assert "there are: " + ", ".join(COMMANDS) in capsys.readouterr().err


def test_arguments_that_do_not_parse_are_the_users_too(capsys):
    assert cli.main(["generate", "--tokens", "many"]) == 2
    assert capsys.readouterr().err.startswith("cuboid generate: argument --tokens: ")


PROBLEMS = [Problem("a.py", 2, None, "no"), Problem("a.py", 1, None, "nor this")]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (None, 0, ""),
        (Refused("not like this"), 2, "not like this\n"),
        (ConfigError(PROBLEMS), 2, "a.py:1: nor this\na.py:2: no\n"),
        (Failed("it broke"), 1, "it broke\n"),
        (KeyboardInterrupt(), 1, ""),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, told):
    command = ModuleType("fake", "A command.")

    def run(args, environ):
        assert environ == {"HOME": "here"}
        if error is not None:
            raise error
        return 0

    vars(command).update(run=run, add_arguments=lambda parser: None)
    monkeypatch.setattr(cli, "_load", lambda name: command)
    assert cli.main(["settings"], {"HOME": "here"}) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", told)


def test_a_reader_that_leaves_early_gets_no_trace():
    for arguments in ("settings", "settings seed"):  # more than a buffer, and less
        line = f"{sys.executable} -m launch.cli {arguments} | true"
        run = subprocess.run(line, shell=True, capture_output=True, check=True)
        assert run.stderr == b""


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "generate"])
def test_help_needs_no_torch(name):
    code = (
        f"import importlib, sys; importlib.import_module('launch.commands.{name}'); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
