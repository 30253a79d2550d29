"""Every command with an unwritable stdout or stderr: work and exit code are unchanged."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import current_process
from pathlib import Path
from typing import TextIO
from unittest.mock import patch

import evaluate_gpt
import throughput_gpt
import train_gpt
from engine import discover
from launch import cli, torchrun
from tests.support.worlds import run_world

CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 8
MAX_STEPS = 2
model = dict(n_layer=1, n_head=2, n_embd=8, vocab_size=32)
data = dict(type="text", path="text.txt", tokenizer="char", validation=0.2)
checkpoint = dict(every=1)
"""
TEXT = "€ and ä are not ASCII, nor is ∂. " * 20
# Of every command: a line that it does, after those above it, and one that it refuses.
DONE = {
    "settings": ["settings"],
    "validate": ["validate", "tiny.py", "--json"],
    "train": ["train", "tiny.py", "--output=run"],
    "checkpoint": ["checkpoint", "ls", "run"],
    "evaluate": ["evaluate", "run", "--json"],
    "generate": ["generate", "run", "--tokens=20"],
    "export": ["export", "run", "--to=hf", "--out=exported"],
    "import": ["import", "exported", "--from=hf"],
    "prepare": ["prepare", "text.txt", "--tokenizer=bytes", "--output=shards", "--workers=1"],
    "sizes": ["sizes", "gpt2_small"],
    "slurm": ["slurm", "tiny.py", "--nodes=1", "--cpu", "--script=job.sh"],
    "steps": ["steps", "--hours=1", "--tokens-per-second=1000", "--batch=8", "--seq=64"],
    "throughput": ["throughput", "tiny.py", "--max-batch=1", "--steps=1", "--warmup=1"],
}
MADE = [
    *("run/model.safetensors", "exported/model.safetensors", "imported/exported"),
    *("shards/tokens.json", "job.sh", "throughput.csv"),
]
PROGRAMS = {
    "": train_gpt.main,
    "evaluate_gpt": evaluate_gpt.main,
    "throughput_gpt": throughput_gpt.main,
}


def closed_pipe() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


def full_disk() -> TextIO:
    return Path("/dev/full").open("w", encoding="utf-8")


def ascii_only() -> TextIO:
    return Path("said").open("w", encoding="ascii")


def closed() -> None:
    return None


Streams = Callable[[], TextIO | None]


@contextlib.contextmanager
def standard(streams: Streams) -> Iterator[None]:
    """Replace stdout and stderr as a new process gets them."""
    with patch.object(sys, "stdout", streams()), patch.object(sys, "stderr", streams()):
        yield
        if sys.stdout is not None:
            sys.stdout.flush()


def one_rank(streams: Streams) -> Callable[..., int]:
    """Run one rank as torchrun does, with separate streams but in this process."""

    def run(ranks: int, arguments: Sequence[str], *, program: str = "", restarts: int = 0) -> int:
        with standard(streams):
            return PROGRAMS[program](arguments, {})

    return run


def exit_code(argv: Sequence[str], environ: Mapping[str, str]) -> int | str:
    try:
        return cli.main(argv, environ)
    except SystemExit as left:  # --help
        return left.code or 0
    except BaseException as error:
        return repr(error)


def all_commands(rank: int, size: int, folder: Path) -> dict[str, dict[str, int | str]]:
    """Return the exit code of every command line, by kind of stream."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # prepare has workers
    lines = [["--help"], ["--version"], ["nonsense"], *DONE.values()]
    lines += [[name, "--help"] for name in DONE] + [[name, "--nonsense"] for name in DONE]
    codes: dict[str, dict[str, int | str]] = {}
    for streams in STREAMS:
        here = folder / streams.__name__
        here.mkdir()
        os.chdir(here)
        Path("tiny.py").write_text(CONFIG)
        Path("text.txt").write_text(TEXT)
        of_lines = codes[streams.__name__] = {}
        for argv in lines:
            with standard(streams), patch.object(torchrun, "run", one_rank(streams)):
                of_lines[" ".join(argv)] = exit_code(argv, {"XDG_CACHE_HOME": str(here)})
    return codes


STREAMS = [closed_pipe, full_disk, ascii_only, closed]


def test_failed_output_changes_neither_work_nor_exit_code(tmp_path):
    assert sorted(DONE) == discover.module_names(cli.COMMANDS), (
        "a command without a line in this test"
    )
    (codes,) = run_world(1, all_commands, tmp_path, open_group=False)
    for streams, of_lines in codes.items():
        wanted = {line: 2 if "nonsense" in line else 0 for line in of_lines}
        assert of_lines == wanted, streams
        assert all((tmp_path / streams / path).exists() for path in MADE)
