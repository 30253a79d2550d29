"""Command-line arguments: FILE, KEY=VALUE, paths and unknown options."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
from pathlib import Path

import pytest

from engine import discover
from engine.errors import UserError
from engine.runs.start_candidates import StartOptions
from launch import cli
from launch.arguments import (
    add_config,
    add_run,
    config_and_overrides,
    files_and_overrides,
    output_file,
    run_and_overrides,
    run_arguments,
    start_options,
)
from launch.number_types import byte_size, positive
from launch.parser import Parser


def parse(line: str) -> tuple[Path | None, list[str]]:
    parser = argparse.ArgumentParser()
    add_config(parser, required=True)
    parser.add_argument("--gpus", type=positive)
    return config_and_overrides(parser.parse_intermixed_args(line.split()))


@pytest.mark.parametrize(
    "line",
    [
        "a.py seed=1 optimizer.lr=3e-4",
        "seed=1 a.py optimizer.lr=3e-4",
        "seed=1 --gpus 4 a.py optimizer.lr=3e-4",
        "a.py seed=1 --gpus 4 optimizer.lr=3e-4",
        "--config a.py seed=1 optimizer.lr=3e-4",
        "seed=1 --config=a.py optimizer.lr=3e-4",
    ],
)
def test_file_options_and_overrides_parse_in_any_order(line):
    assert parse(line) == (Path("a.py"), ["seed=1", "optimizer.lr=3e-4"])


def test_config_is_optional_and_its_path_may_contain_an_equals_sign():
    assert parse("seed=1") == (None, ["seed=1"])
    assert parse("runs/lr=3/config.py") == (Path("runs/lr=3/config.py"), [])


def test_two_config_files_are_rejected():
    with pytest.raises(UserError, match=r"expected one config file, got 2: a\.py b\.py"):
        parse("--config a.py b.py")
    with pytest.raises(
        UserError, match=r"got 2: a\.py data; if the data is in data, set data\.path=d"
    ):
        parse("a.py data")


def test_plus_signs_of_hydra_are_accepted():
    assert parse("a.py +seed=1 ++optimizer.lr=3e-4") == (
        Path("a.py"),
        ["seed=1", "optimizer.lr=3e-4"],
    )


def test_files_are_returned_in_the_order_given():
    parser = argparse.ArgumentParser()
    add_config(parser, required=True)
    args = parser.parse_intermixed_args("b.py seed=1 a.py --config c.py".split())
    assert files_and_overrides(args) == ([Path("c.py"), Path("b.py"), Path("a.py")], ["seed=1"])


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5"])
def test_option_below_1_is_rejected(text, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(f"a.py --gpus {text}")
    assert caught.value.code == 2
    assert "--gpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("80GiB", 80 * 2**30),
        ("80 GiB", 80 * 2**30),
        ("24GB", 24 * 10**9),
        ("1.5MiB", 3 * 2**19),
        ("1TB", 10**12),
        ("512KiB", 2**19),
    ],
)
def test_sizes_with_units_parse(text, number):
    assert byte_size(text) == number


@pytest.mark.parametrize(
    "text", ["", "80", "80G", "80gib", "GiB", "-1GiB", "0GiB", "1e3GiB", "nanGiB", "80GiBs"]
)
def test_invalid_sizes_are_rejected(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size, such as 80GiB or 24GB"):
        byte_size(text)


def test_init_from_with_resume_is_rejected(tmp_path):
    parser = Parser(prog="train")
    add_run(parser)

    def parsed(*argv: str) -> StartOptions:
        return start_options(parser.parse_args([*argv, f"--init-from={tmp_path}"]))

    assert parsed().init_from == tmp_path
    assert parsed("--resume=auto").resume == "auto"
    with pytest.raises(UserError) as caught:
        parsed("--resume=runs/x")
    assert str(caught.value) == (
        f"--resume=runs/x continues a run, but --init-from={tmp_path} starts a new one; pass only "
        "one of them"
    )
    assert f"--init-from={tmp_path}" in run_arguments(
        parser.parse_args([f"--init-from={tmp_path}"]), tmp_path, []
    )


COMMANDS = discover.module_names("launch.commands")


def path_options(command: str) -> list[argparse.Action]:
    """Return the options of a command whose metavar is a path."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"launch.commands.{command}").add_arguments(parser)
    shown = re.compile(r"\b(DIR|FILE|PATH|FOLDER)\b|^path$|^run$")
    return [
        action
        for action in parser._actions
        if action.dest != "words" and shown.search(str(action.metavar or action.dest))
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_path_options_are_expanded_and_checked(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positional paths are tested below."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    for action in path_options(command):
        assert callable(action.type), f"{command}: {action.dest} takes any text"
        for bad in ("", "a\0b", "\udcff", "~nobody-here/x"):
            with pytest.raises(argparse.ArgumentTypeError):
                action.type(bad)
        given = "~/new" if action.type is output_file or action.dest == "map_svg" else "~/x"
        assert str(action.type(given)) == given.replace("~", str(tmp_path))


def test_positional_paths_are_expanded_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("~/gpt.py seed=1") == (tmp_path / "gpt.py", ["seed=1"])
    with pytest.raises(UserError, match=r"^'\\udcff' is not UTF-8 \(byte 0xff\); rename it$"):
        parse("\udcff seed=1")
    os.mkfifo(tmp_path / "pipe")
    for name, expected in (
        ("pipe", "is a named pipe; a folder is needed"),
        ("no", "does not exist"),
    ):
        with pytest.raises(UserError, match=expected):
            run_and_overrides(argparse.Namespace(words=[str(tmp_path / name)]))


@pytest.mark.parametrize(
    "line",
    [
        "generate pipe",
        "export pipe --to hf",
        "evaluate pipe",
        "checkpoint ls pipe",
        "import pipe --from hf",
        "validate pipe",
        "validate gpt.py --map-svg pipe",
        "train gpt.py --init-from pipe",
        "train gpt.py data.path=pipe",
        "train gpt.py --output pipe",
    ],
)
def test_named_pipe_is_rejected_in_one_line_without_waiting(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    config = (
        "BATCH_SIZE = 8\nSEQ_LEN = 8\nMAX_STEPS = 1\nmodel = dict(n_layer=1, n_head=1, n_embd=8)\n"
    )
    (tmp_path / "gpt.py").write_text(config)
    assert cli.main(line.split(), {}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pipe" in line
    assert "is a named pipe; " in line or "is not a folder" in line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("generate --max-tokens 100", "did you mean --tokens?"),
        ("generate --topk 3", "did you mean --top-k?"),
        ("evaluate --num-gpus=2", "did you mean --gpus?"),
        ("train a.py --learning-rate 3e-4", "did you mean optimizer.lr=3e-4?"),
        ("train --learning-rate a.py", "did you mean optimizer.lr=...?"),
        ("train a.py --batch-size=8", "did you mean BATCH_SIZE=8 or GLOBAL_BATCH_SIZE=8?"),
        ("train a.py --bf16", "did you mean precision='bf16'?"),
        ("train a.py --device cuda", "a rank uses a GPU if there is one, else the CPU"),
        ("validate a.py --frobnicate 3", "cuboid validate --help lists them"),
        ("train -n 4 a.py", "cuboid train --help lists them"),
    ],
)
def test_unknown_option_is_rejected_with_a_suggestion(line, expected, capsys):
    assert cli.main(line.split()) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"cuboid {line.split()[0]}: -")
    assert "is not an option" in message
    assert message.endswith(f"{expected}\n")
    assert message.count("\n") == 1


def test_unknown_options_are_rejected_together_with_their_values(capsys):
    line = "train a.py --n_layer 15 --enable-amp-mode --strategy 'my ddp' --gpus 2 --bf16 seed=1"
    assert cli.main(shlex.split(line)) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"cuboid train: {option} is not an option; settings have no dashes: did you mean {setting}?"
        for option, setting in (
            ("--n_layer", "model.n_layer=15"),
            ("--enable-amp-mode", "precision='fp16'"),
            ("--strategy", "strategy='my ddp'"),
            ("--bf16", "precision='bf16'"),
        )
    ]


def test_abbreviated_option_and_value_with_dashes_are_accepted():
    parser = Parser(prog="train")
    parser.add_argument("--prompt")
    parser.add_argument("words", nargs="*")
    assert parser.parse_intermixed_args(["--prom=--x"]).prompt == "--x"
    assert parser.parse_intermixed_args(["--prompt", "-- a dash"]).prompt == "-- a dash"
