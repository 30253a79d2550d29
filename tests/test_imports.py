"""Imports point downwards, and the modules that must start fast never import torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.import_graph import Graph, cycles, import_graph, path_to

ROOT = Path(__file__).parents[1]
TOPS = ("evaluate_gpt", "throughput_gpt", "train_gpt", "launch", "engine", "models")
# Packages, modules at the root of engine/, and programs, lowest first. A module imports only from
# its own line's node and from the lines above it. `engine.a` includes its subpackages, unless they
# have a line of their own.
ORDER = """
models.parallel
models
engine.errors
engine.formatting engine.discover engine.files
engine.layout engine.step_message engine.pipeline
engine.config
engine.plan
engine.unsupported
engine.data
engine.optim
engine.estimate
engine.world.coordination
engine.world
engine.prepare
engine.nvme
engine.training
engine.checkpoint
engine.runs
engine.inout
engine.open_data engine.faults
engine.evaluation engine.generation
engine.start engine.end_of_run engine.throughput
engine.train
launch
train_gpt evaluate_gpt throughput_gpt
benchmarks
"""
LEVELS = {node: level for level, line in enumerate(ORDER.splitlines()) for node in line.split()}
TORCH_FREE = (
    "engine/config/**/*.py",
    "engine/errors.py",
    "engine/formatting.py",
    "engine/estimate/**/*.py",
    "engine/files/*.py",
    "engine/layout.py",
    "engine/pipeline/*.py",
    "engine/plan.py",
    "engine/step_message.py",
    "models/parallel/shard.py",
    "models/parallel/mode.py",
    "models/parallel/modes/*.py",
    "models/parallel/registry.py",
    "models/presets.py",
)
# Third-party packages that those modules may import: none of them imports torch.
LIGHT = {"annotated_types", "pydantic", "pydantic_core"}


def node_of(module: str) -> str:
    """Return the longest entry of ORDER that is `module` or a package around it; '' if none is."""
    while module and module not in LEVELS:
        module = module.rpartition(".")[0]
    return module


def upward(graph: Graph) -> set[str]:
    """Return the imports that do not point downwards, and the modules that ORDER does not place."""
    placed = {module: node_of(module) for module in graph if module != "engine"}
    found = {f"{module} has no line in ORDER" for module, node in placed.items() if not node}
    for module, node in placed.items():
        for name in graph[module] & graph.keys():
            target = node_of(name)
            if node and target and node != target and LEVELS[target] >= LEVELS[node]:
                found.add(f"{module} imports {name}")
    return found


def heavy(graph: Graph, modules: list[str]) -> list[str]:
    """Return chains of imports from `modules` to packages that are neither ours, light nor
    Python's."""
    allowed = {*TOPS, *LIGHT, *sys.stdlib_module_names}
    foreign = {name.split(".")[0] for names in graph.values() for name in names} - allowed
    chains = [path_to(graph, module, name) for module in modules for name in sorted(foreign)]
    return [" -> ".join(chain) for chain in chains if chain]


def torch_free(root: Path) -> list[str]:
    """Return the names of the modules that TORCH_FREE lists."""
    files = [file for pattern in TORCH_FREE for file in root.glob(pattern)]
    names = [file.relative_to(root).with_suffix("").as_posix().replace("/", ".") for file in files]
    return sorted(name.removesuffix(".__init__") for name in names)


def declared_graph(root: Path) -> Graph:
    """Return the imports between our modules, those under `if TYPE_CHECKING` included."""
    return import_graph(root, *TOPS, "benchmarks", type_checking=True)


GRAPH = import_graph(ROOT, *TOPS)
DECLARED = declared_graph(ROOT)
MODULES = torch_free(ROOT)


def test_imports_point_downwards():
    """Imports for type checking count, too: a reader of a module needs the modules that it
    names."""
    assert {"evaluate_gpt", "train_gpt", "launch.cli", "engine.plan", "models.gpt"} <= GRAPH.keys()
    assert upward(DECLARED) == set(), "ORDER does not allow these imports"


def test_order_lists_only_existing_packages_and_modules():
    assert {node_of(module) for module in DECLARED if module != "engine"} == LEVELS.keys()


def test_no_modules_import_each_other_in_a_cycle():
    assert cycles(DECLARED) == []


def test_no_packages_import_each_other_in_a_cycle():
    """The test does not use ORDER: a mistake in ORDER must not hide a cycle."""
    packages: Graph = {node: set() for node in LEVELS}
    for module, names in DECLARED.items():
        for name in names & DECLARED.keys():
            if node_of(module) != node_of(name):
                packages[node_of(module)].add(node_of(name))
    assert sum(map(len, packages.values())) > 100
    assert cycles(packages) == []


def test_no_chain_of_imports_leads_from_a_torch_free_module_to_torch():
    assert {"engine.plan", "engine.config.schema", "models.parallel.modes.tensor_2d"} <= {*MODULES}
    assert heavy(GRAPH, MODULES) == []


def test_importing_all_torch_free_modules_loads_no_torch():
    """The test imports the modules in a new interpreter, which includes the imports of third-party
    packages and of modules by name."""
    code = f"""
import importlib, sys
for module in {MODULES}:
    importlib.import_module(module)
importlib.import_module("models.parallel.registry").modes()
print(*sorted({{"torch", "numpy", "colossalai"}} & sys.modules.keys()))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == "\n"


def test_shipped_configs_import_no_code_of_cuboid():
    names = {name for names in import_graph(ROOT, "gpt_configs").values() for name in names}
    assert not {name.split(".")[0] for name in names} & {*TOPS, "benchmarks", "tests"}


def test_package_init_files_are_empty():
    """Importing a module runs the packages around it: an import there would be overlooked."""
    packages = [file for top in TOPS for file in (ROOT / top).rglob("__init__.py")]
    assert packages
    assert [file for file in packages if file.read_text("utf-8").strip()] == []


def imports_of_tests(graph: Graph) -> list[str]:
    """Return the imports of test modules; ``graph`` has the modules of tests."""
    return sorted(
        f"{module} imports {name}"
        for module, names in graph.items()
        for name in names
        if any(part.startswith("test_") for part in name.split("."))
    )


def test_test_modules_import_no_test_module():
    """Shared parts belong in tests/support or in support.py of the folder."""
    folders = [f"tests/{path.stem}" for path in ROOT.glob("tests/*") if "_" not in path.stem]
    modules = [f"tests/{path.stem}" for path in ROOT.glob("tests/test_*.py")]
    graph = import_graph(ROOT, *folders, *modules, type_checking=True)
    assert {"tests.test_imports", "tests.engine.test_plan", "tests.support.jobs"} <= graph.keys()
    assert imports_of_tests(graph) == []


@pytest.mark.parametrize(
    "line", ["from tests.models.test_loss import problem", "from tests.models import test_loss"]
)
def test_planted_import_of_a_test_module_is_reported(tmp_path: Path, line: str) -> None:
    (tmp_path / "tests/models").mkdir(parents=True)
    (tmp_path / "tests/models/test_loss.py").write_text("")
    (tmp_path / "tests/models/test_scores.py").write_text(f"def f():\n    {line}\n")
    assert imports_of_tests(import_graph(tmp_path, "tests")) == [
        "tests.models.test_scores imports tests.models.test_loss"
    ]


def planted(root: Path, file: str, line: str) -> tuple[Graph, Graph]:
    """Write a small tree of modules with `line` added to `file`; return its graph of imports that
    run and its graph of all imports."""
    tree = {
        "launch/cli.py": "from engine import plan",
        "engine/plan.py": "import pydantic\nfrom engine.config import schema",
        "engine/train.py": "import torch",
        "engine/config/schema.py": "import models.parallel.shard",
        "engine/data/batches/loader.py": "from engine.config.schema import Data",
        "models/gpt.py": "import torch",
        "models/parallel/shard.py": "import math",
    }
    for name, text in {**tree, file: f"{tree.get(file, '')}\n{line}"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return import_graph(root, *TOPS), declared_graph(root)


@pytest.mark.parametrize(
    ("file", "line", "error"),
    [
        ("models/gpt.py", "import engine.plan", "models.gpt imports engine.plan"),
        ("models/gpt.py", "def f():\n    from launch import cli", "models.gpt imports launch.cli"),
        (
            "engine/config/schema.py",
            "from engine.data.batches.loader import load",
            "engine.config.schema imports engine.data.batches.loader",
        ),
        (
            "engine/config/schema.py",
            "if TYPE_CHECKING:\n    from engine.plan import Plan",
            "engine.config.schema imports engine.plan",
        ),
        (
            "engine/data/batches/loader.py",
            "from engine.optim import registry",
            "engine.data.batches.loader imports engine.optim.registry",
        ),
        (
            "models/parallel/shard.py",
            "from models import gpt",
            "models.parallel.shard imports models.gpt",
        ),
        ("engine/new.py", "", "engine.new has no line in ORDER"),
        ("engine/plan.py", "def f():\n    import torch.cuda", "engine.plan -> torch.cuda"),
        ("engine/plan.py", "from models import gpt", "engine.plan -> models.gpt -> torch"),
        ("engine/plan.py", "from . import train", "engine.plan -> engine.train -> torch"),
        ("engine/__init__.py", "import colossalai", "engine.plan -> engine -> colossalai"),
        ("engine/plan.py", "if TYPE_CHECKING:\n    import torch", None),
        ("engine/plan.py", "import models.parallel.shard", None),
    ],
)
def test_planted_import_is_reported(
    tmp_path: Path, file: str, line: str, error: str | None
) -> None:
    (tmp_path / "engine/optim").mkdir(parents=True)
    (tmp_path / "engine/optim/registry.py").write_text("")
    graph, declared = planted(tmp_path, file, line)
    errors = [*upward(declared), *heavy(graph, torch_free(tmp_path))]
    if error is None:
        assert errors == []
    else:
        assert error in errors


@pytest.mark.parametrize(
    ("file", "line", "cycle"),
    [
        ("engine/config/schema.py", "import engine.plan", ["engine.config.schema", "engine.plan"]),
        (
            "models/parallel/shard.py",
            "if TYPE_CHECKING:\n    from engine.data.batches.loader import load",
            ["engine.config.schema", "engine.data.batches.loader", "models.parallel.shard"],
        ),
    ],
)
def test_planted_cycle_is_reported(tmp_path: Path, file: str, line: str, cycle: list[str]) -> None:
    _, declared = planted(tmp_path, file, line)
    assert cycles(declared) == [cycle]
