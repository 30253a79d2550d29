"""Checks of this machine before a run starts; they leave no files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.errors import UserError
from engine.estimate.estimate import estimate
from engine.estimate.result import Estimate, Memory
from launch import preflight
from launch.machine import Machine
from launch.preflight import checks_here, run_preflight
from launch.validate.inspection import MachineCheck
from tests.launch.validate.support import GIB, made_up, plan, write

CONFIG = """
BATCH_SIZE = 8
SEQ_LEN = 64
MAX_STEPS = 10
model = dict(n_layer=2, n_head=4, n_embd=64, vocab_size=50257)
"""
ROOMY = Machine(gpus=0, memory=1024 * GIB)
SMALL = made_up(Memory(parameters=1000))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to the folder in which the run would start."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


@pytest.fixture
def problems(environ: dict[str, str]) -> Callable[..., list[str]]:
    def find(
        *overrides: str,
        text: str = CONFIG,
        found: Estimate = SMALL,
        machine: Machine = ROOMY,
        output: Path | None = None,
        gpus: int | None = None,
    ) -> list[str]:
        write(Path.cwd(), text)
        asked = plan(Path("gpt.py"), *overrides, gpus=gpus)
        return problems_of(checks_here(asked, found, machine, environ, output))

    return find


def problems_of(checks: Iterable[MachineCheck]) -> list[str]:
    return [problem for check in checks for problem in check.problems]


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_suitable_machine_has_no_problems_and_no_new_files(folder, problems):
    (folder / "a.txt").write_text("some text")
    assert problems("data.path=a.txt", "log.dir=out/deep") == []
    assert all_files(folder) == ["a.txt", "gpt.py"]


def test_probe_is_fsynced_in_each_folder_of_the_run(folder, problems, monkeypatch):
    synced: list[Path] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        assert path.stat().st_size > 0
        synced.append(path.parent)

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("nvme", "out", "cache"):
        (folder / name).mkdir()
    nvme = ["zero.stage=3", "zero.offload=nvme", "zero.nvme_path=nvme"]
    assert problems(*nvme, "log.dir=out", "data.cache=cache") == []
    assert set(synced) == {folder / "nvme", folder / "out", folder / "cache"}
    assert all_files(folder) == ["cache", "gpt.py", "nvme", "out"]


def test_missing_or_empty_data_is_reported_with_its_line(folder, problems):
    text = CONFIG + "data = dict(path='a.txt')\n"
    assert problems(text=text) == [f"gpt.py:6: data.path='a.txt' does not exist in {folder}"]
    (folder / "a.txt").touch()
    assert problems(text=text) == ["gpt.py:6: data.path='a.txt' is empty; name a file with data"]
    assert problems("data.path=nowhere.txt") == [
        f"command line: data.path='nowhere.txt' does not exist in {folder}"
    ]


def test_files_of_a_data_folder_are_checked_by_their_first_bytes(folder, problems):
    (folder / "texts").mkdir()
    assert problems("data.path=texts") == [
        "command line: data.path='texts': no file is there, or all files are empty; name one "
        "with data"
    ]
    (folder / "texts" / "a").write_text("some text")
    assert problems("data.path=texts") == []
    (folder / "texts" / "b.txt").write_bytes(b"PK\x03\x04")
    assert problems("data.path=texts") == [
        "command line: data.path='texts': texts/b.txt is a zip archive, not text; unzip texts/b.txt"
    ]
    assert problems("data.path=texts", "data.type=text") == []
    assert problems("data.path=texts", "data.type=synthetic") == []


NVME = CONFIG + "zero = dict(stage=3, offload='nvme', nvme_path='nvme')\n"


def test_missing_nvme_folder_is_reported(folder, problems):
    (problem,) = problems(text=NVME)
    assert (
        problem
        == "gpt.py:6: zero.nvme_path='nvme': nvme is not a folder on this machine; create it"
    )
    (folder / "nvme").touch()
    assert len(problems(text=NVME)) == 1


def test_folder_without_write_permission_is_reported(folder, problems):
    """Not even root can create files in /proc."""
    (problem,) = problems("log.dir=/proc/1/run")
    assert problem.startswith("command line: log.dir='/proc/1/run': /proc/1/run cannot be written")
    (problem,) = problems("data.cache=/proc/cuboid")
    assert "data.cache='/proc/cuboid'" in problem
    (problem,) = problems(output=Path("/proc/1"))
    assert problem.startswith("--output /proc/1: /proc/1 cannot be written: ")


def test_folder_below_a_file_is_reported(folder, problems):
    (problem,) = problems("log.dir=gpt.py/run")
    cause = f"{folder}/gpt.py is not a folder"
    assert problem == f"command line: log.dir='gpt.py/run': {cause}; choose another path"


def test_folders_that_the_run_does_not_write_are_not_probed(folder, problems):
    """Synthetic data needs no cache."""
    assert problems("data.type=synthetic", "data.cache=/proc/cuboid") == []
    text = CONFIG + "zero = dict(stage=3, offload='cpu', nvme_path='nowhere')\n"
    assert problems(text=text) == []


def test_read_only_cache_with_tokens_is_accepted(folder, problems, monkeypatch):
    """Other files of a cache, such as locks and digests, do not count as tokens."""

    def read_only(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().parent.name == "cache":
            raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", read_only)
    cache = folder / "cache"
    cache.mkdir()
    (cache / "a.lock").touch()
    (problem,) = problems("data.cache=cache")
    assert problem.endswith("cache cannot be written: Read-only file system")
    (cache / "a.tokens").touch()
    assert problems("data.cache=cache") == []


def test_bytes_for_one_disk_are_summed(folder, problems, monkeypatch):
    (folder / "nvme").mkdir()
    found = made_up(Memory(nvme=5 * GIB), Memory(nvme=7 * GIB))
    each = 4  # tensor 2 x data 2
    weights = 4 * found.parameters
    needed = each * 12 * GIB + weights
    layout = ["PIPELINE=2", "TENSOR_PARALLEL=2", "MODE=1d", "zero.nvme_path=nvme"]
    for free, count in ((needed, 0), (needed - 1, 1)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free)
        )
        reported = problems(*layout, text=NVME, found=found, gpus=8)
        assert len(reported) == count
    assert reported == [
        "command line: zero.nvme_path='nvme': not enough disk space: 475 MiB of weights and "
        "48 GiB of offloaded state to write, 48.5 GiB free"
    ]


def test_predicted_bytes_of_weights_are_parameters_times_their_size(folder, problems, environ):
    asked = plan(write(folder, CONFIG), "precision=float64")
    found = estimate(asked)
    (need, _) = preflight.needs(asked, found, environ, None)
    assert (need.path, need.bytes) == (Path("runs"), 8 * found.parameters)
    (need, _) = preflight.needs(plan(folder / "gpt.py"), found, environ, Path("there"))
    assert (need.path, need.bytes) == (Path("there"), 4 * found.parameters)


def test_predicted_checkpoint_has_weights_and_optimizer_states(folder, problems, monkeypatch):
    weights = 4 * SMALL.parameters
    for overrides, copies in (
        (("checkpoint.every=5",), 1 + 3),  # AdamW keeps two of each, beside the weights at the end
        (("checkpoint.minutes=5.0", "optimizer.type='sgd'"), 1 + 1),
        ((), 1),
    ):
        for missing in (0, 1):
            free = SimpleNamespace(free=copies * weights - missing)
            monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: free)
            reported = problems(*overrides)
            assert len(reported) == missing
        assert ("of a checkpoint" in reported[0]) == bool(overrides)


@pytest.mark.parametrize(("memory", "count"), [(4 * 13 * GIB, 0), (4 * 13 * GIB - 1, 1)])
def test_ranks_on_cpus_share_host_memory(problems, memory, count):
    found = made_up(Memory(parameters=5 * GIB, host=GIB), Memory(activations=7 * GIB))
    layout = ["PIPELINE=2", "TENSOR_PARALLEL=2", "MODE=1d"]
    reported = problems(*layout, found=found, machine=Machine(gpus=0, memory=memory), gpus=8)
    assert len(reported) == count
    if reported:
        assert reported == [
            "gpt.py: without GPUs all ranks together need 52 GiB of host memory, but this "
            "machine has 52 GiB"
        ]


def test_offloaded_bytes_on_gpus_need_host_memory(problems):
    found = made_up(Memory(parameters=50 * GIB, host=GIB))
    machine = Machine(gpus=4, memory=4 * GIB, gpu_memory=80 * GIB)
    assert problems(found=found, machine=machine, gpus=4) == []
    (problem,) = problems(found=found, machine=machine, gpus=5)
    assert "offloading needs 5 GiB of host memory, but this machine has 4 GiB" in problem


def test_train_reports_all_problems_at_once(folder, environ):
    path = write(folder, CONFIG + "data = dict(path='a.txt')\nlog = dict(dir='/proc/1/run')\n")
    asked = plan(path)
    memory = estimate(asked).fullest.memory.total
    with pytest.raises(UserError) as caught:
        run_preflight(asked, Machine(gpus=1, memory=GIB, gpu_memory=memory - 1), environ, None)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1][:9] for line in lines] == ["the model", "data.path", "log.dir='"]
    (folder / "a.txt").write_text("text")
    enough = Machine(gpus=1, memory=GIB, gpu_memory=memory)
    run_preflight(plan(path, "log.dir=out"), enough, environ, None)
    with pytest.raises(UserError, match="the model needs"):  # two ranks on one GPU
        run_preflight(plan(path, "log.dir=out", gpus=2), enough, environ, None)


def test_every_check_has_a_finding(folder, environ):
    (folder / "a.txt").write_text(2048 * "x")
    asked = plan(write(folder, CONFIG), "data.path=a.txt", "log.dir=out", gpus=2)
    found = made_up(Memory(parameters=GIB, host=GIB))
    checks = list(checks_here(asked, found, ROOMY, environ))
    assert [check.about for check in checks] == ["GPUs", "memory", "data", "disk", "packages"]
    gpus, memory, data, disk, packages = (check.finding for check in checks)
    assert gpus.startswith("none: 2 ranks on ")
    assert memory.endswith("together need 4 GiB of host memory, of 1 TiB")
    assert data == "1 file of 2 KiB can be read"
    assert packages == "those of log.tensorboard are installed"
    assert disk.startswith("out and ")
    assert " can be written; 475 MiB of weights to write, " in disk
    machine = Machine(gpus=8, memory=GIB, gpu_memory=80 * GIB)
    (finding, *_) = (check.finding for check in checks_here(asked, found, machine, environ))
    assert finding == "8 of 80 GiB, for 2 ranks"


def test_problem_is_listed_under_its_check(folder, environ):
    asked = plan(write(folder, CONFIG), "data.path=none.txt", "log.dir=/proc/1/run")
    checks = {check.about: check for check in checks_here(asked, SMALL, ROOMY, environ)}
    assert [len(check.problems) for check in checks.values()] == [0, 0, 1, 0, 0]
    assert checks["data"].finding == "see below"
    (problem,) = checks["data"].problems
    assert problem.startswith("command line: data.path='none.txt'")


def test_compile_on_a_cpu_requires_a_compiler(folder, environ, monkeypatch):
    compiled = plan(write(folder, CONFIG), "compile=True", "data.type=synthetic")

    def reported(machine: Machine, **more: str) -> list[str]:
        return problems_of(checks_here(compiled, SMALL, machine, {**environ, **more}))

    working = folder / "c++"
    working.write_text("#!/bin/sh\nexit 0\n")
    working.chmod(0o755)
    assert reported(ROOMY, CXX=str(working)) == []
    (problem,) = reported(ROOMY, CXX="no-such-compiler")
    assert problem.startswith(
        "command line: compile=True needs a C++ compiler, and no-such-compiler, which CXX names, "
    )
    on_gpu = Machine(gpus=1, memory=1024 * GIB, gpu_memory=80 * GIB)
    assert reported(on_gpu, CXX="no-such-compiler") == []
    monkeypatch.setenv("PATH", str(folder))  # where inductor's own choice is looked for
    (problem,) = reported(ROOMY)
    assert "and g++ does not run here" in problem
    plain = plan(folder / "gpt.py", "data.type=synthetic")
    assert problems_of(checks_here(plain, SMALL, ROOMY, environ)) == []


def test_missing_network_interface_of_gloo_is_reported(problems, environ):
    environ["GLOO_SOCKET_IFNAME"] = "lo"
    assert problems() == []
    environ["GLOO_SOCKET_IFNAME"] = "nowhere0"
    (problem,) = problems()
    assert problem.startswith("GLOO_SOCKET_IFNAME=nowhere0 in the environment: this machine has no")
