"""Memory, speed and resume of ``cuboid prepare`` on a large generated text.

    python benchmarks/prepare.py --bytes 1e9 --tokenizer gpt2

The speed is relative to the tokenizer alone: as many processes as ``cuboid prepare`` starts encode
the first part of the text in pieces of a megabyte, before and after the run. The ratio of the CPU
time per byte depends less on other programs than that of the speed. The memory is the
largest sum over all processes of the command, sampled. A second command is killed midway and
repeated, and its files are compared with those of the first one.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import psutil

from engine.data.tokenizer import tokenizer_type
from engine.formatting import format_bytes
from engine.world.processor import this_processor, usable_cores

MEGABYTE = 1 << 20
SAMPLE = 24  # megabytes per process, for the speed of the tokenizer alone
POLL_SECONDS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=float, default=1e9, help="size of the text")
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        measure(Path(name), int(args.bytes), args.tokenizer)


def measure(folder: Path, size: int, tokenizer: str) -> None:
    """Run everything in ``folder`` and print the results."""
    text = folder / "text.txt"
    write_text(text, size)
    cores = usable_cores()
    before = tokenizer_speed(text, tokenizer, cores)
    seconds, cpu_seconds, peak = watched(command(text, tokenizer, folder / "whole"))
    after = tokenizer_speed(text, tokenizer, cores)
    alone, alone_cpu = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    speed, cpu = size / seconds, size / cpu_seconds
    print(f"{this_processor().name}, {cores} cores; {size:,} bytes by {tokenizer}", flush=True)
    print(f"peak memory of all processes   {format_bytes(peak)}")
    print(f"speed                          {speed / 1e6:.2f} MB/s")
    print(f"speed of the tokenizer alone   {alone / 1e6:.2f} MB/s, ratio {speed / alone:.2f}")
    print(f"per CPU second                 {cpu / 1e6:.2f} MB")
    print(f"of the tokenizer alone         {alone_cpu / 1e6:.2f} MB, ratio {cpu / alone_cpu:.2f}")
    journal = folder / "killed" / "tokens.unfinished"
    shards = len(list((folder / "whole").glob("*.npy")))
    kill_at(command(text, tokenizer, folder / "killed"), journal, shards // 2)
    kept = len(list((folder / "killed").glob("*.npy")))
    watched(command(text, tokenizer, folder / "killed"))
    same = hashes(folder / "whole") == hashes(folder / "killed")
    print(f"killed after {kept} of {shards} shards and repeated: the same bytes: {same}")
    if not same:
        sys.exit(1)


def command(text: Path, tokenizer: str, output: Path) -> list[str]:
    program = [sys.executable, "-m", "launch.cli", "prepare", str(text)]
    return [*program, "--tokenizer", tokenizer, "--output", str(output)]


def write_text(path: Path, size: int) -> None:
    """Write English paragraphs in a random order, ``size`` bytes."""
    paragraphs = [p.encode() for topic in topics.values() for p in topic.split("\n\n")]
    numbers, written = random.Random(0), 0
    with path.open("wb") as file:
        while written < size:
            part = b"\n\n".join(numbers.choices(paragraphs, k=1000)) + b"\n\n"
            part = part[: size - written].decode("utf-8", "ignore").encode() or b"\n"
            file.write(part)
            written += len(part)


def tokenizer_speed(text: Path, tokenizer: str, processes: int) -> tuple[float, float]:
    """Return the bytes per second of some processes that only encode, and per CPU second."""
    context = get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=_encode, args=(str(text), tokenizer, number, barrier, results))
        for number in range(processes)
    ]
    for process in started:
        process.start()
    found: list[tuple[int, float, float]] = [results.get() for _ in started]
    for process in started:
        process.join()
    speed = sum(size / seconds for size, seconds, _ in found)
    return speed, sum(size for size, _, _ in found) / sum(cpu for _, _, cpu in found)


def _encode(path: str, name: str, number: int, barrier: Any, results: Any) -> None:
    with Path(path).open("rb") as file:
        file.seek(number * SAMPLE * MEGABYTE)
        pieces = [file.read(MEGABYTE).decode("utf-8", "ignore") for _ in range(SAMPLE)]
    encoder = tokenizer_type(name).fit(pieces)
    encoder.encode(pieces[0])
    barrier.wait()
    started, cpu = time.perf_counter(), time.process_time()
    for piece in pieces:
        encoder.encode(piece)
    seconds = time.perf_counter() - started
    results.put((sum(map(len, pieces)), seconds, time.process_time() - cpu))


def watched(words: list[str]) -> tuple[float, float, int]:
    """Run a command; return its seconds, the CPU seconds of its processes and the largest sum of
    their memory."""
    started, peak = time.perf_counter(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        whole = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                members = [whole, *whole.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in members))
            time.sleep(POLL_SECONDS)
    if process.returncode:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}")
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak


def kill_at(words: list[str], journal: Path, shards: int) -> None:
    """Run a command and kill it once its journal has ``shards`` shards."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if lines > shards:  # the first line is the request
                process.send_signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


if __name__ == "__main__":
    main()
