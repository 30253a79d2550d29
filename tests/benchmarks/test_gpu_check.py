"""./run.sh gpu-check on the CPU. The machines with GPUs may have no network and a host name that
does not resolve; where this machine permits, the check runs under these conditions."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu import ORDER
from benchmarks.gpu_check.families import FAMILIES

ROOT = Path(__file__).parents[2]
PATIENCE = 1100.0
ISOLATED = [
    *("unshare", "--map-root-user", "--net", "--uts", "sh", "-c"),
    'hostname no-such-host && ip link set lo up && exec "$@"',
    "sh",
]


@dataclass
class RunningCheck:
    """A check that runs in another process. All its descendants have ``mark`` in their
    environment."""

    process: subprocess.Popen[str]
    folder: Path
    mark: str

    def rows(self) -> list[dict[str, Any]]:
        file = self.folder / "results.jsonl"
        if not file.is_file():
            return []
        lines = file.read_text().splitlines(keepends=True)
        return [
            json.loads(line) for line in lines if line.endswith("\n")
        ]  # skips an incomplete one

    def lines(self) -> list[str]:
        return (self.folder / "table.txt").read_text().splitlines()

    def finish(self) -> int:
        self.stdout, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode

    def output(self) -> str:
        return self.stdout + self.folder.with_name("stderr").read_text()

    def wait_for(self, cases: set[str]) -> None:
        """Wait until the table has rows of all these cases."""
        deadline = time.monotonic() + PATIENCE
        while not cases <= {row["case"] for row in self.rows()}:
            assert self.process.poll() is None, "the check ended early"
            assert time.monotonic() < deadline, f"only {self.rows()}"
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """Return the running processes of the check."""
        running = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get("CHECK_OF_TEST") == self.mark:
                    running.append(process)
        return running

    def assert_nothing_left(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while left := self.processes():
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.05)


@contextlib.contextmanager
def start_check(
    folder: Path, *arguments: str, prefix: Sequence[str] = (), fault: str = ""
) -> Iterator[RunningCheck]:
    mark = uuid.uuid4().hex
    environ = {**os.environ, "CHECK_OF_TEST": mark, "FAULT": fault}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry", "--minutes=20"]
    with folder.with_name("stderr").open("w") as stderr:
        process = subprocess.Popen(
            [*prefix, *command, f"--output={folder}", *arguments],
            env=environ,
            cwd=folder.parent,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    check = RunningCheck(process, folder, mark)
    try:
        yield check
    finally:
        for process_left in check.processes():
            with contextlib.suppress(psutil.Error):
                process_left.kill()
        process.kill()
        process.communicate()


def isolation() -> Sequence[str]:
    """Return a command prefix that disconnects the network; empty where that is not possible."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return ()
    tried = subprocess.run([*ISOLATED, "true"], capture_output=True)
    return ISOLATED if tried.returncode == 0 else ()


FEW = ("matmul", "attention", "head", "large", "vanilla", "2d", "profile", "memory")
"""Cases that the default tests run: all but those that start pytest, a resume or a comparison."""


@pytest.fixture(
    scope="module",
    params=[FEW, pytest.param(ORDER, marks=pytest.mark.slow)],
    ids=["few cases", "all cases"],
)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningCheck]:
    """Return a check that has run the cases of the parameter."""
    folder = tmp_path_factory.mktemp("gpu") / "check"
    with start_check(folder, "--only", *request.param, prefix=isolation()) as check:
        code = check.finish()
        assert code == 0, check.output()
        check.assert_nothing_left()
        yield check


def test_every_case_has_a_row_with_numbers(finished: RunningCheck) -> None:
    rows = finished.rows()
    cases = {row["case"] for row in rows}
    assert cases >= set(FEW)
    assert all(row["passed"] is not False for row in rows)
    assert all(row["numbers"] for row in rows)
    by_case = {row["case"]: row["numbers"] for row in rows}
    for name in cases & set(FAMILIES):
        numbers = by_case[name]
        assert len(numbers["losses"]) == len(numbers["cpu_losses"]) == 3
        assert numbers["losses"][0] == pytest.approx(math.log(128), rel=0.02)
        assert numbers["predicted"] > 0
        assert numbers["allocated"] > 0
    matmuls = [row["numbers"] for row in rows if row["case"] == "matmul"]
    assert [one["name"] for one in matmuls][-2:] == ["head 127", "head 128"]
    assert all(rate > 0 for one in matmuls for rate in one["flops"].values())
    assert by_case["attention"]["backend"] == "flash"
    assert len([row for row in rows if row["case"] == "memory"]) == 4
    profile = by_case["profile"]
    assert {"matmul", "attention", "norm", "optimizer", "loss"} <= profile["kinds"].keys()
    assert sum(profile["kinds"].values()) > 0
    assert 0 <= profile["idle"] < 1
    assert profile["mfu"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("finished", [ORDER], ids=["all cases"], indirect=True)
def test_all_cases_include_the_tests_a_resume_and_a_comparison(finished: RunningCheck) -> None:
    by_case = {row["case"]: row["numbers"] for row in finished.rows()}
    assert by_case.keys() == set(ORDER)
    assert by_case["tests"]["tests"] > 10
    assert by_case["resume"]["straight"] == by_case["resume"]["killed"]
    assert by_case["speed"]["first_losses"]["ours"] == pytest.approx(
        by_case["speed"]["first_losses"]["bare"], rel=1e-3
    )


def test_table_on_stdout_and_in_the_folder_has_every_row(finished: RunningCheck) -> None:
    lines = finished.lines()
    assert len(lines) == len(finished.rows()) + 2
    assert [line.split()[0] for line in lines[1:-1]] == [row["case"] for row in finished.rows()]
    assert finished.stdout.splitlines() == lines  # on stdout; libraries warn on stderr


def test_failed_case_does_not_stop_the_check_and_a_kill_leaves_the_finished_rows(
    tmp_path: Path,
) -> None:
    """Rank 3 raises an error: only case 2d has four ranks. Then the check is killed by SIGKILL."""
    cases = ("2d", "vanilla", "memory")
    with start_check(tmp_path / "check", "--only", *cases, fault="raise:3:2") as check:
        check.wait_for({"cpu", "2d", "vanilla"})
        check.process.send_signal(signal.SIGKILL)
        check.process.wait(PATIENCE)
        check.assert_nothing_left()
        passed = {row["case"]: row["passed"] for row in check.rows()}
        assert passed.pop("memory", None) is None  # may have finished before the kill
        assert passed == {"cpu": None, "vanilla": True, "2d": False}
        (failed,) = (row for row in check.rows() if row["case"] == "2d")
        assert "rank" in failed["text"]
        log = (check.folder / "logs" / "2d.txt").read_text()
        assert "a planted fault" in log
        cases_done = [row["case"] for row in check.rows()]
        rows = check.lines()[1 : 1 + len(cases_done)]  # the summary may have been written, too
        assert [line.split()[0] for line in rows] == cases_done


def test_cases_without_time_left_are_reported_as_not_run(tmp_path: Path) -> None:
    with start_check(tmp_path / "check", "--only", "vanilla", "resume", "--minutes=0") as check:
        assert check.finish() == 1
        assert {(row["case"], row["text"]) for row in check.rows()} == {
            (case, "not run: no time left") for case in ("cpu", "vanilla", "resume")
        }


@pytest.mark.slow
def test_compiled_cases_pass_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with start_check(tmp_path / "check", "--only", "compile", "speed", "profile") as check:
        assert check.finish() == 0, check.output()
        profile = check.rows()[-1]["numbers"]
        assert any("cpp_fused" in name or "Compiled" in name for name, _ in profile["largest"])
