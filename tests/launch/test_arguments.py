"""FILE and KEY=VALUE, as people type them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from engine.checkpoint.ways import Asked
from engine.errors import Refused
from launch.arguments import (
    Parser,
    add_config,
    add_run,
    beginning,
    config_and_overrides,
    files_and_overrides,
    positive,
    run_arguments,
)


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
def test_in_any_order(line):
    assert parse(line) == (Path("a.py"), ["seed=1", "optimizer.lr=3e-4"])


def test_no_file_and_a_file_whose_folder_has_a_sign():
    assert parse("seed=1") == (None, ["seed=1"])
    assert parse("runs/lr=3/config.py") == (Path("runs/lr=3/config.py"), [])


def test_two_files_are_refused():
    with pytest.raises(Refused, match=r"one config file, not 2: a\.py b\.py"):
        parse("--config a.py b.py")


def test_several_files_keep_their_order():
    parser = argparse.ArgumentParser()
    add_config(parser, required=True)
    args = parser.parse_intermixed_args("b.py seed=1 a.py --config c.py".split())
    assert files_and_overrides(args) == ([Path("c.py"), Path("b.py"), Path("a.py")], ["seed=1"])


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5"])
def test_positive(text, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(f"a.py --gpus {text}")
    assert caught.value.code == 2
    assert "--gpus" in capsys.readouterr().err


def test_beginning_with_weights_contradicts_going_on(tmp_path):
    parser = Parser(prog="train")
    add_run(parser)

    def told(*argv: str) -> Asked:
        return beginning(parser.parse_args([*argv, f"--init-from={tmp_path}"]))

    assert told().init_from == tmp_path
    assert told("--resume=auto").resume == "auto"
    with pytest.raises(Refused) as caught:
        told("--resume=runs/x")
    assert str(caught.value) == (
        f"--resume=runs/x goes on with a run, and --init-from={tmp_path} begins one: give one of "
        "them"
    )
    assert f"--init-from={tmp_path}" in run_arguments(
        parser.parse_args([f"--init-from={tmp_path}"]), tmp_path, []
    )
