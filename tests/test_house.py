"""Checks of the source tree: packages, pinned versions, sizes of files and functions, tests."""

import ast
import json
import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTEST: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PYTEST_SECONDS: float = PYTEST["tool"]["pytest"]["ini_options"]["timeout"]
PACKAGES = ("engine", "launch", "models")
MAX_LINES, MAX_FUNCTION_LINES = 330, 66  # "about 300" and "about 60"
CLOCKS = {"time.time", "time.monotonic", "time.perf_counter", "time.process_time"}
HURRIED = {  # none of these modules fails on a slow machine
    "tests/support/worlds.py": "the bound of a world that hangs",
    "tests/support/test_worlds.py": "a world that hangs on purpose",
    "tests/engine/world/coordination/test_liveness.py": "the least time between two polls",
    "tests/benchmarks/test_gpu_check.py": "the bound of a script that hangs",
}
GENEROUS_SECONDS = 60.0


def pins(*names: str) -> dict[str, Requirement]:
    lines = [line for name in names for line in (ROOT / name).read_text("utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


@pytest.fixture(scope="module")
def packaging() -> dict[str, Any]:
    """Run setup.py in another process and return the arguments that it passes to setuptools."""
    code = """
import json, runpy, setuptools
setuptools.setup = lambda **arguments: print(json.dumps(arguments))
runpy.run_path("setup.py")
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    arguments: dict[str, Any] = json.loads(run.stdout)
    return arguments


def test_pins_are_versions_that_setup_accepts(packaging):
    pinned = pins("requirements.txt", "requirements-dev.txt", "requirements-nodeps.txt")
    for text in (*packaging["install_requires"], *packaging["extras_require"]["dev"]):
        accepted = Requirement(text)
        (pin,) = pinned[canonicalize_name(accepted.name)].specifier
        assert pin.operator == "=="
        assert accepted.specifier.contains(pin.version), f"{accepted} excludes {pin}"


def test_pins_and_setup_name_the_same_packages(packaging):
    def names(requirements: list[str]) -> set[str]:
        return {canonicalize_name(Requirement(text).name) for text in requirements}

    # setuptools installs the package itself; Colossal-AI comes without its own requirements
    runtime = pins("requirements.txt", "requirements-nodeps.txt").keys()
    assert names(packaging["install_requires"]) == runtime - {"setuptools", "colossalai"}
    assert names(packaging["extras_require"]["dev"]) == pins("requirements-dev.txt").keys()


def test_every_folder_of_modules_is_packaged(packaging):
    folders = {
        file.parent.relative_to(ROOT) for top in PACKAGES for file in ROOT.glob(f"{top}/**/*.py")
    }
    assert {".".join(folder.parts) for folder in folders} == {*packaging["packages"]}
    assert all((ROOT / top / "py.typed").is_file() for top in PACKAGES)
    (configs,) = packaging["data_files"]
    assert "gpt_configs/demo.py" in configs[1]


def source_files() -> list[Path]:
    return [
        *ROOT.glob("*_gpt.py"),
        *(file for top in PACKAGES for file in ROOT.glob(f"{top}/**/*.py")),
    ]


def test_files_stay_below_the_line_limit():
    lengths = {file: len(file.read_text("utf-8").splitlines()) for file in source_files()}
    assert {file for file, length in lengths.items() if length > MAX_LINES} == set()


def test_functions_stay_below_the_line_limit():
    long = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for file in source_files()
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def hurries(call: ast.Call) -> bool:
    """Return whether a call reads a clock, sets a timeout of less than a minute, or gives a test a
    shorter timeout than pytest's own."""
    called = ast.unparse(call.func)
    if called == "pytest.mark.timeout":
        return number(call.args[0]) < PYTEST_SECONDS
    limits = [number(word.value) for word in call.keywords if word.arg == "timeout"]
    return called in CLOCKS or min(limits, default=math.inf) < GENEROUS_SECONDS


def number(node: ast.expr) -> float:
    """Return the value of a literal number; infinity for any other expression."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int | float) else math.inf


def test_no_test_depends_on_the_speed_of_the_machine():
    """Tests wait for a condition, bounded by pytest's timeout, and count calls, not seconds
    (tests/support/call_count.py)."""
    files = {str(file.relative_to(ROOT)): file for file in ROOT.glob("tests/**/*.py")}
    found = [
        f"{name}:{node.lineno}: {ast.unparse(node)}"
        for name, file in files.items()
        if "_configs/" not in name and name not in HURRIED
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and hurries(node)
    ]
    assert found == []
