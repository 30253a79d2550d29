"""Standard streams that drop text rather than fail."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.standard_streams import UnfailingWriter, install_unfailing_streams, reader_left

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pipe():
    """Both ends of a pipe; the test may close them."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def take_over(monkeypatch: pytest.MonkeyPatch, stream: io.TextIOBase | None) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    install_unfailing_streams()


def test_printed_text_arrives_completely_and_in_order(monkeypatch, pipe, tmp_path):
    """The text is much larger than a pipe's buffer."""
    text = "".join(f"{number} ä €\n" for number in range(20_000))
    with (tmp_path / "out").open("wb") as file:
        reader = subprocess.Popen(["cat"], stdin=pipe[0], stdout=file)
    os.set_blocking(pipe[1], False)  # such as another program may have left it
    take_over(monkeypatch, os.fdopen(os.dup(pipe[1]), "w", encoding="utf-8"))
    print("first")
    print(text, end="")
    sys.stdout.flush()
    monkeypatch.undo()
    os.close(pipe[1])
    assert reader.wait() == 0
    assert (tmp_path / "out").read_text() == "first\n" + text


def test_characters_that_the_encoding_lacks_are_escaped(monkeypatch, tmp_path):
    file = tmp_path / "out"
    take_over(monkeypatch, file.open("w", encoding="ascii"))
    print("a € and a byte \udcff that was no UTF-8")
    sys.stdout.flush()
    assert file.read_text() == "a \\u20ac and a byte \\udcff that was no UTF-8\n"


def test_a_closed_pipe_is_recorded(monkeypatch, pipe):
    take_over(monkeypatch, os.fdopen(os.dup(pipe[1]), "w"))
    print("heard", flush=True)
    assert not reader_left(sys.stdout)
    os.close(pipe[0])
    print("not heard", flush=True)
    assert reader_left(sys.stdout)
    assert not reader_left(io.StringIO())


def test_a_stalled_reader_delays_a_rank_only_once(pipe):
    """Text is dropped until the reader resumes; later text arrives."""
    stream = UnfailingWriter(pipe[1], max_stall=0.01)
    room = len(os.read(pipe[0], 1 << 20)) if stream.write(b"x" * (1 << 20)) else 0
    assert 0 < room < 1 << 20
    assert stream.write(b"again") == 5
    assert os.read(pipe[0], 1 << 20) == b"again"


def test_streams_without_a_descriptor_are_not_replaced(monkeypatch):
    stream = io.StringIO()
    take_over(monkeypatch, stream)
    assert sys.stdout is sys.stderr is stream


CLOSED = """
import os, sys
from launch.standard_streams import install_unfailing_streams
assert sys.stdout is None
assert sys.stderr is None
install_unfailing_streams()
print("lost")
print("lost", file=sys.stderr)
sys.stdout.flush()
assert os.open(sys.argv[0] if os.path.exists(sys.argv[0]) else os.devnull, os.O_RDONLY) > 2
assert os.get_inheritable(1)
"""


def test_a_closed_descriptor_is_not_reused_for_the_next_file():
    line = '"$0" -c "$1" >&- 2>&-'
    run = subprocess.run(["sh", "-c", line, sys.executable, CLOSED], cwd=ROOT, check=False)
    assert run.returncode == 0


EXITS = """
import sys
from launch.standard_streams import install_unfailing_streams
install_unfailing_streams()
print("more than a buffer\\n" * 1000, "and less")
print("so does this", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("redirect", ["| true", ">/dev/full 2>&1", ">&- 2>&-"])
def test_the_interpreter_exits_with_the_code_of_the_program(redirect):
    """Python flushes at exit; a failed flush would change the exit code to 120."""
    line = f'exec 4>&1; ("$0" -c "$1"; echo $? >&4) {redirect}'
    command = ["sh", "-c", line, sys.executable, EXITS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert run.stdout == b"3\n"
    assert run.stderr in (b"", b"so does this\n")
