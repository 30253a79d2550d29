"""Imports run one way, and rooms that must answer at once never reach torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.import_graph import Graph, import_graph, path_to

ROOT = Path(__file__).parents[1]
FLOORS = (
    "evaluate_gpt",
    "train_gpt",
    "launch",
    "engine",
    "models",
)  # each imports itself and those after it
ROOMS_WITHOUT_TORCH = (
    "engine/config/**/*.py",
    "engine/errors.py",
    "engine/estimate/**/*.py",
    "engine/layout.py",
    "engine/plan.py",
    "models/parallel/shard.py",
    "models/parallel/mode.py",
    "models/parallel/modes/*.py",
    "models/parallel/registry.py",
    "models/presets.py",
)
# What those rooms may use of others' work: none of it imports torch.
LIGHT = {"annotated_types", "pydantic", "pydantic_core"}


def upward(graph: Graph) -> list[str]:
    """Imports that run against the one direction."""
    return [
        f"{module} imports {name}"
        for module, names in graph.items()
        for name in names
        if name.split(".")[0] in FLOORS[: FLOORS.index(module.split(".")[0])]
    ]


def heavy(graph: Graph, rooms: list[str]) -> list[str]:
    """Chains of imports from ``rooms`` to packages that are neither ours, light nor Python's."""
    allowed = {*FLOORS, *LIGHT, *sys.stdlib_module_names}
    foreign = {name.split(".")[0] for names in graph.values() for name in names} - allowed
    chains = [path_to(graph, room, name) for room in rooms for name in sorted(foreign)]
    return [" -> ".join(chain) for chain in chains if chain]


def rooms_without_torch(root: Path) -> list[str]:
    files = [file for room in ROOMS_WITHOUT_TORCH for file in root.glob(room)]
    names = [file.relative_to(root).with_suffix("").as_posix().replace("/", ".") for file in files]
    return sorted(name.removesuffix(".__init__") for name in names)


GRAPH = import_graph(ROOT, *FLOORS)
ROOMS = rooms_without_torch(ROOT)


def test_imports_run_one_way():
    assert {"evaluate_gpt", "train_gpt", "launch.cli", "engine.plan", "models.gpt"} <= GRAPH.keys()
    assert upward(GRAPH) == []


def test_no_chain_of_imports_leads_from_a_light_room_to_torch():
    assert {"engine.plan", "engine.config.schema", "models.parallel.modes.tensor_2d"} <= {*ROOMS}
    assert heavy(GRAPH, ROOMS) == []


def test_no_light_room_loads_torch():
    """Python's word on it: imports of others and modules found at run time included."""
    code = f"""
import importlib, sys
for room in {ROOMS}:
    importlib.import_module(room)
importlib.import_module("models.parallel.registry").modes()
print(*sorted({{"torch", "numpy", "colossalai"}} & sys.modules.keys()))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == "\n"


def test_configs_import_nothing_of_ours_but_configs():
    names = {name for names in import_graph(ROOT, "gpt_configs").values() for name in names}
    assert not {name.split(".")[0] for name in names} & {*FLOORS, "benchmarks", "tests"}


def test_packages_are_empty():
    """Importing a module runs the packages around it: nothing may hide there."""
    packages = [file for top in FLOORS for file in (ROOT / top).rglob("__init__.py")]
    assert packages
    assert [file for file in packages if file.read_text("utf-8").strip()] == []


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("models/gpt.py", "import engine.plan", "models.gpt imports engine.plan"),
        ("models/gpt.py", "def f():\n    from launch import cli", "models.gpt imports launch.cli"),
        ("engine/plan.py", "def f():\n    import torch.cuda", "engine.plan -> torch.cuda"),
        ("engine/plan.py", "from models import gpt", "engine.plan -> models.gpt -> torch"),
        ("engine/plan.py", "from . import train", "engine.plan -> engine.train -> torch"),
        ("engine/__init__.py", "import colossalai", "engine.plan -> engine -> colossalai"),
        ("engine/plan.py", "if TYPE_CHECKING:\n    import torch", None),
        ("engine/plan.py", "import models.parallel.shard", None),
    ],
)
def test_what_is_planted_is_found(tmp_path, file, line, told):
    tree = {
        "launch/cli.py": "from engine import plan",
        "engine/plan.py": "import pydantic",
        "engine/train.py": "import torch",
        "models/gpt.py": "import torch",
        "models/parallel/shard.py": "import math",
    }
    for name, text in {**tree, file: f"{tree.get(file, '')}\n{line}"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    graph = import_graph(tmp_path, *FLOORS)
    found = upward(graph) + heavy(graph, rooms_without_torch(tmp_path))
    assert (told in found) if told else found == []
