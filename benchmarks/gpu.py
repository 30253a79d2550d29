"""Checks and measurements of cuboid on one GPU: ./run.sh gpu-check [--dry]. See docs/gpu-check.md.

    python benchmarks/gpu.py [--dry] [--only CASE ...] [--output DIR] [--minutes M] [--wheels DIR]

Each case runs in separate processes, with a timeout; a failed case does not stop the others. A row
is appended to DIR/results.jsonl and DIR/table.txt as soon as it is finished. This process does not
import torch. Exit codes: 0 all passed, 1 a case failed, 2 the arguments or the machine were
rejected.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from importlib import invalidate_caches
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_check import packages  # noqa: E402
from benchmarks.gpu_check.results import CaseResult, Results  # noqa: E402
from benchmarks.gpu_check.sizes import DRY, GPU  # noqa: E402

if TYPE_CHECKING:
    from benchmarks.gpu_check.check import CheckCase, GpuCheck

ORDER = (
    *("machine", "matmul", "attention", "head"),
    *("cpu", "vanilla", "bf16", "fp16", "2d", "2d-bf16", "zero3-cpu", "zero3-nvme", "pp1d", "3d"),
    *("resume", "compile", "tests"),
    *("speed", "profile", "large", "memory"),
)
"""The cheapest and most telling first. Neighbours that do not measure time run side by side."""

GRACE = 20.0
"""Seconds after the last case in which processes may end by themselves."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    folder: Path = args.output
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return refuse(f"--output {folder}: is there already; name a new folder")
    except OSError as error:
        return refuse(f"--output {folder}: cannot be made: {error.strerror or error}")
    path = [ROOT]
    problem = packages.unpack(args.wheels, folder / "packages") if args.wheels else None
    if args.wheels:
        path.insert(0, folder / "packages")
        sys.path.insert(0, str(path[0]))
        invalidate_caches()
    if lacking := [] if problem else packages.lacking():
        problem = f"not installed: {', '.join(lacking)}; give their wheels with --wheels DIR"
    if problem:
        shutil.rmtree(folder)
        return refuse(problem)
    return check(args, folder, path)


def check(args: argparse.Namespace, folder: Path, path: list[Path]) -> int:
    """Run the cases, print and write their rows, and return the exit code."""
    # Imported here, because these modules need packages that --wheels may have installed.
    from benchmarks.gpu_check import families, other_cases, processes
    from benchmarks.gpu_check.check import SIDE_BY_SIDE, GpuCheck

    mark = uuid.uuid4().hex
    os.environ.update(processes.environment(mark, path))
    if args.dry:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling for a CPU takes a minute
    processes.stop_on_signals()
    by_name = {case.name: case for case in [*other_cases.cases(), *families.cases()]}
    assert by_name.keys() == set(ORDER)
    one = GpuCheck(
        folder=folder.resolve(),
        sizes=DRY if args.dry else GPU,
        results=Results(folder),
        ends=time.monotonic() + 60 * args.minutes,
    )
    selected = [by_name[name] for name in ORDER if not args.only or name in args.only]
    if {case.name for case in selected} & families.FAMILIES.keys() and by_name[
        "cpu"
    ] not in selected:
        selected.insert(0, by_name["cpu"])
    try:
        for alone, cases in groupby(selected, key=lambda case: case.alone):
            run_together(list(cases), one, 1 if alone else SIDE_BY_SIDE, mark)
    except KeyboardInterrupt as signal:
        one.results.say(f"stopped by {signal or 'Ctrl-C'}")
        return 1
    strays = processes.end_strays(mark, GRACE)
    if strays:
        text = f"left behind and ended: {'; '.join(strays)}"
        one.results.add(CaseResult(case="processes", passed=False, text=text))
    failed = [row for row in one.results.rows if row.passed is False]
    one.results.say(f"{len(one.results.rows)} rows, {len(failed)} failed; all in {folder}")
    return 1 if failed else 0


def run_together(cases: list[CheckCase], check: GpuCheck, most: int, mark: str) -> None:
    """Run the cases, up to ``most`` at a time.

    On Ctrl-C, a signal or an exception in a case, kill the processes of all cases. A case that
    fails adds a row and does not raise.
    """
    from benchmarks.gpu_check import processes

    pool = ThreadPoolExecutor(most)
    try:
        running = [pool.submit(case, check) for case in cases]
        for future in wait(running, return_when=FIRST_EXCEPTION).done:
            future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        processes.end_strays(mark)
        raise
    finally:
        pool.shutdown()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on the CPU, with small sizes")
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=ORDER, help=", ".join(ORDER))
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs") / time.strftime("gpu-check-%Y%m%d-%H%M%S"),
        metavar="DIR",
        help="a new folder for results, logs and runs; default: runs/gpu-check-TIME",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        metavar="M",
        help="when to be done: cases are stopped, or not begun; default: 9",
    )
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="wheels of the packages that are not installed"
    )
    return parser.parse_args(argv)


def refuse(problem: str) -> int:
    print(f"gpu-check: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
