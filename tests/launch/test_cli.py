"""The cuboid command: help, exit codes and imports."""

from __future__ import annotations

import errno
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import evaluate_gpt
import train_gpt
from engine import discover
from engine.errors import ConfigError, Problem, RunError, UserError
from engine.plan import make_plan
from launch import cli
from launch.arguments import config_and_overrides

COMMANDS = discover.module_names(cli.COMMANDS)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_usage_lists_every_command(argv, capsys):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert max(map(len, out.splitlines())) <= 80
    assert "exit codes: 0 done; 1 failed or stopped; 2 the input was rejected" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_one_line_of_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    usage = capsys.readouterr().out
    assert usage.startswith(f"usage: cuboid {name}")
    summary = (sys.modules[f"{cli.COMMANDS}.{name}"].__doc__ or "").splitlines()[0]
    assert summary.endswith(".")
    assert len(summary) < 80


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_terminal_and_its_examples_parse(name, capsys, monkeypatch, tmp_path):
    """Their config files exist and are valid with the overrides."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    examples = sys.modules[f"{cli.COMMANDS}.{name}"].EXAMPLES
    monkeypatch.chdir(tmp_path)
    assert examples
    assert lines[-len(examples) :] == [f"  {example}" for example in examples]
    for example in examples:
        program, command, *words = shlex.split(example)
        assert (program, command) == ("cuboid", name)
        for folder in (word for word in words if word.startswith(("runs/", "path/"))):
            Path(folder).mkdir(parents=True, exist_ok=True)
        args = cli.parser_of(name).parse_intermixed_args(words)
        for config in (word for word in words if word.endswith(".py")):
            _, overrides = config_and_overrides(args)
            make_plan(ROOT / config, gpus=vars(args).get("gpus"), overrides=overrides, environ={})


@pytest.mark.parametrize("script", [train_gpt, evaluate_gpt])
def test_help_of_the_torchrun_programs_has_an_example(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        script.parse(["--help"])
    *lines, example = capsys.readouterr().out.splitlines()
    assert max(map(len, [*lines, example])) <= 80
    name, *words = shlex.split(example)[3:]
    assert name == f"{script.__name__}.py"
    given = script.parse(words)
    for spelling in ("--local-rank", "--local_rank"):  # which torch.distributed.launch adds
        assert vars(script.parse([*words, f"{spelling}=1"])) == {**vars(given), "local_rank": 1}


def test_unknown_command_is_rejected_with_a_suggestion(capsys):
    assert cli.main(["valdiate"]) == 2
    assert capsys.readouterr().err == "cuboid: valdiate is not a command; did you mean validate?\n"
    assert cli.main(["frobnicate"]) == 2
    assert "commands: " + ", ".join(COMMANDS) in capsys.readouterr().err


def test_invalid_arguments_exit_with_2(capsys):
    assert cli.main(["generate", "--tokens", "many"]) == 2
    assert capsys.readouterr().err.startswith("cuboid generate: argument --tokens: ")


FULL_DISK = "/dev/full cannot be written: No space, 4,321 bytes are free there; free some space\n"
PROBLEMS = [Problem("a.py", 2, None, "no"), Problem("a.py", 1, None, "nor this")]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (UserError("not like this"), 2, "not like this\n"),
        (ConfigError(PROBLEMS), 2, "a.py:1: nor this\na.py:2: no\n"),
        (RunError("it broke"), 1, "it broke\n"),
        (KeyboardInterrupt(), 1, ""),
        (KeyboardInterrupt("SIGUSR1"), 1, "stopped by SIGUSR1\n"),
        (OSError(errno.ENOSPC, "No space", "/dev/full"), 1, FULL_DISK),
    ],
)
def test_each_error_has_its_exit_code_and_message(monkeypatch, capsys, error, code, message):
    command = ModuleType("fake", "A command.")

    def run(args, environ):
        assert environ == {"HOME": "here"}
        if error is not None:
            raise error
        return 0

    vars(command).update(run=run, add_arguments=lambda parser: None, EXAMPLES=())
    monkeypatch.setattr(discover, "load", lambda package, name: command)
    usage = {"/dev/full": SimpleNamespace(free=4321)}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage[str(path)])
    assert cli.main(["settings"], {"HOME": "here"}) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", message)


def test_closed_pipe_prints_no_traceback():
    for arguments in ("settings", "settings seed"):  # more than a buffer, and less
        line = f"{shlex.quote(sys.executable)} -m launch.cli {arguments} | true"
        run = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, check=True)
        assert run.stderr == b""


def test_help_does_not_import_torch():
    names = [name for name in COMMANDS if name != "generate"]
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(f'launch.commands.{name}')\n"
        "    assert 'torch' not in sys.modules, f'{name} imports torch'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
