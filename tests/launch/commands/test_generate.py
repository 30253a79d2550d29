"""cuboid generate: the choice of the run, and its output piece by piece."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import UserError
from engine.generation import text
from engine.inout import open_model as opening
from engine.runs.folder import RunFolder
from launch import cli


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Open a model that continues any prompt with a b c, and record its arguments."""
    calls: dict[str, Any] = {}

    def open_trained(path: Path, which: str) -> SimpleNamespace:
        calls.update(path=path, which=which)
        return SimpleNamespace(path=path / "checkpoints" / "step-00001200", step=1200)

    def open_model(trained: SimpleNamespace, device: object) -> tuple[str, str]:
        return "model", "tokenizer"

    def continue_text(
        model: str, words: str, prompt: str, sampling: object, number: int
    ) -> Iterator[str]:
        calls.update(prompt=prompt, sampling=sampling, printed=[], number=number)
        if prompt == "?":
            raise UserError("cannot read ?")
        for piece in "abc":
            yield piece
            captured = calls["capsys"].readouterr()
            calls["printed"].append(captured.out)
            calls["message"] = calls.get("message", "") + captured.err

    monkeypatch.setattr(opening, "open_saved_model", open_trained)
    monkeypatch.setattr(text, "load_any_model", open_model)
    monkeypatch.setattr(text, "generate_text", continue_text)
    return calls


def weights_of(path: Path) -> Path:
    """Create the files of a finished run that a command checks before it opens the model."""
    path.mkdir(parents=True)
    RunFolder(path).weights.touch()
    return path


def test_prompt_and_text_are_printed_piece_by_piece(opened, capsys, tmp_path, monkeypatch):
    opened["capsys"] = capsys
    monkeypatch.chdir(tmp_path)
    folder = weights_of(Path("somewhere"))
    options = ["--tokens", "3", "--temperature", "0.5", "--seed", "9"]
    options += ["--top-k", "7", "--top-p", "0.9"]
    assert cli.main(["generate", "somewhere", "--prompt", "The ", *options], {}) == 0
    assert opened["printed"] == ["The a", "b", "c"]
    assert capsys.readouterr().out == "\n"
    assert (opened["path"], opened["which"]) == (folder, "latest")
    assert opened["sampling"] == text.SamplingOptions(
        tokens=3, temperature=0.5, top_k=7, top_p=0.9, seed=9
    )
    assert opened["number"] == 0
    assert opened["message"] == "somewhere/checkpoints/step-00001200, step 1,200\n"


def test_several_texts_are_separated(opened, capsys, tmp_path, monkeypatch):
    opened["capsys"] = capsys
    monkeypatch.chdir(tmp_path)
    weights_of(Path("somewhere"))
    assert cli.main(["generate", "somewhere", "--prompt", "The ", "--num", "2"], {}) == 0
    assert opened["printed"] == ["\n--- 2 of 2 ---\nThe a", "b", "c"]
    assert opened["number"] == 1
    assert opened["message"].count("\n") == 1, "once for all texts"


def test_newest_run_is_the_default(opened, capsys, tmp_path, monkeypatch):
    opened["capsys"] = capsys
    monkeypatch.chdir(tmp_path)
    for name in ("b-20260101-000000", "a-20260201-000000"):
        weights_of(Path("runs") / name)
    assert cli.main(["generate"], {}) == 0
    assert opened["path"] == Path("runs/a-20260201-000000")


def test_user_error_is_one_line_without_text(opened, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights_of(Path("somewhere"))
    for argv, message in (
        ([], "no run under runs/ has weights; pass the path of a run"),
        (["nowhere"], "nowhere does not exist in /"),
        (["somewhere", "--prompt", "?"], "cannot read ?"),
        (["somewhere", "--temperature", "-1"], "--temperature: -1 is not 0 or more"),
        (["somewhere", "--temperature", "nan"], "--temperature: nan is not 0 or more"),
        (["somewhere", "--top-k", "0"], "--top-k"),
        (["somewhere", "--top-p", "0"], "--top-p: 0 is not in (0, 1]"),
        (["somewhere", "--top-p", "1.1"], "--top-p: 1.1 is not in (0, 1]"),
        (["somewhere", "--num", "0"], "--num"),
    ):
        assert cli.main(["generate", *argv], {}) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err
        assert len(captured.err.splitlines()) == 1


def test_characters_that_the_terminal_lacks_are_replaced(opened, tmp_path, monkeypatch, capsys):
    opened["capsys"] = capsys
    monkeypatch.chdir(tmp_path)
    weights_of(Path("somewhere"))
    with Path("terminal").open("w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert cli.main(["generate", "somewhere", "--prompt", "café "], {}) == 0
        sys.stdout.flush()
    assert Path("terminal").read_bytes() == rb"caf\xe9 abc" + b"\n"
