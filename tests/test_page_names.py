"""The pages for developers name modules, classes, functions and packages that exist."""

from __future__ import annotations

import ast
import builtins
import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from engine.config.aliases import ALIASES
from tests.support.import_graph import import_graph, path_to

ROOT = Path(__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PAGES = [
    ARCHITECTURE,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tests/README.md")),
]
SOURCES = ("engine", "models", "launch", "benchmarks", "docs", "tests", "*_gpt.py", "setup.py")
CONFIGS = ("bad_configs", "foreign_configs")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(\./run\.sh|\. |nohup|pip |cuboid|python|torchrun|ruff|mypy|-)")
PATH = re.compile(r"[\w.*/-]*/[\w.*/-]*|[\w*-]+\.(?:py|md|txt|toml|jsonl|json|sh)\b")
DOTTED = re.compile(r"(?<![\w.\"'])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
CALL = re.compile(r"(?<![\w.])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\(\)")
CLASS = re.compile(r"_?[A-Z][a-z]+[A-Z]?\w*")
# utils.py: a name that no file may have.
PLACEHOLDER = re.compile(r"NAME|TheClass|name_of_the_rule|KEY|VALUE|step-N|utils\.py")
OF_OTHERS = {"torch", "dist", "math", "pytest", "patch.object", "lambda", "optimizer.step"}
BUILT_IN = {*dir(builtins), "Iterator", "Path", "def", "assert", "return"}


@dataclass
class Names:
    """The names that modules define. ``members``: of each class, with those of its bases."""

    members: dict[str, set[str]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        """Return whether a dotted name, or the member that it ends in, is defined."""
        owner, _, member = name.rpartition(".")
        if not owner:
            return name in self.others or name in self.members
        known = self.members.get(owner.rpartition(".")[2])
        return member in known if known is not None else self.has(owner) and self.has(member)


def python_files() -> Iterator[Path]:
    """Yield the modules of the tree, but for configs."""
    for top in SOURCES:
        for path in ROOT.glob(top):
            for file in [path] if path.is_file() else path.rglob("*.py"):
                if not {*file.parts} & {*CONFIGS}:
                    yield file


@cache
def defined() -> Names:
    """Read the names of the tree from its syntax; nothing is imported."""
    names, bases = Names(), dict[str, list[str]]()
    names.others |= {*re.findall(r"\$\{(\w+)", (ROOT / "run.sh").read_text(encoding="utf-8"))}
    for file in python_files():
        ours = file.relative_to(ROOT).parts[0] not in ("tests", "benchmarks", "docs")
        names.others |= {file.stem, file.parent.name}
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.ClassDef(name=name):
                    names.members.setdefault(name, set()).update(members_of(node))
                    bases.setdefault(name, []).extend(ast.unparse(base) for base in node.bases)
                case ast.FunctionDef(name=name) | ast.arg(arg=name):
                    names.others.add(name)
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    names.others.add(name)
                case ast.Constant(value=str(text)) if ours:
                    names.constants.add(text)
    for name, parents in bases.items():
        for parent in parents:
            names.members[name] |= names.members.get(parent.rpartition(".")[2], set())
    return names


def members_of(node: ast.ClassDef) -> Iterator[str]:
    """Yield methods, fields and the attributes that methods set on ``self``."""
    for child in ast.walk(node):
        match child:
            case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def wrong_names(page: str, folder: Path) -> Iterator[str]:
    """Yield the names in a page that the tree does not have. Paths may be relative to
    ``folder``."""
    for language, block in FENCE.findall(page):
        if language == "text":
            yield from wrong_paths(PATH.findall(block), folder)
            yield from (call for call in CALL.findall(block) if not is_known(call))
        elif language == "python":
            yield from wrong_python(block)
    for span in SPAN.findall(FENCE.sub("", page)):
        if COMMAND.match(span):
            continue
        found = [path for path in PATH.findall(span) if path not in defined().constants]
        if found:
            yield from wrong_paths(found, folder)
        elif span not in defined().constants or CLASS.match(span):
            code = re.sub(r"\"[^\"]*\"|\[[^]]*\]|step-N", "", span)
            yield from (name for name in DOTTED.findall(code) if not is_known(name))


def wrong_paths(paths: list[str], folder: Path) -> Iterator[str]:
    for path in paths:
        text = path.strip("./").removeprefix("RUN/")
        if not text or PLACEHOLDER.search(Path(text).name) or text in defined().constants:
            text = str(Path(text).parent)
            if text == "." or (PLACEHOLDER.search(path) and not (ROOT / text).exists()):
                continue
        at = [ROOT, folder]
        if fnmatch.filter(file_names(), text):  # only a name without a folder can match
            continue
        if not any([*base.glob(text)] for base in at):
            yield path


@cache
def file_names() -> set[str]:
    """Return the names of all files and folders below the folders of the tree, but for hidden ones,
    such as an environment."""
    tops = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return {path.name for top in tops for path in top.rglob("*")}


def wrong_python(code: str) -> Iterator[str]:
    """Yield the names that an example uses and neither it nor the tree defines."""
    tree = ast.parse(code)
    stored = {node.name for node in ast.walk(tree) if isinstance(node, ast.alias)} | {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in stored and not is_known(node.id):
            yield node.id


def is_known(name: str) -> bool:
    """Return whether a name is a setting, a placeholder, of a library, or defined in the tree."""
    first, _, rest = name.partition(".")
    if name in {*ALIASES, *BUILT_IN} or {name, first} & OF_OTHERS or PLACEHOLDER.search(name):
        return True
    if any(setting.startswith(f"{first}.") for setting in ALIASES):
        return not rest
    return defined().has(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_existing_files_and_objects(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert sorted({*wrong_names(text, page.parent)}) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`Stepper.run()` in `engine/training/step.py`", []),
        (
            "`Stepper.walk()` in `engine/training/steps.py`",
            ["Stepper.walk", "engine/training/steps.py"],
        ),
        ("`GradientSum`", ["GradientSum"]),
        ("`RUN/statements.json`, `RUN/sentences.json`", ["RUN/sentences.json"]),
        ("`pipelin_schedule.py`", ["pipelin_schedule.py"]),
        ("```text\nengine/loops.py  +- trains()\n```", ["engine/loops.py", "trains"]),
        ("`optimizer.rate`, `optimizer.lr`, `zero`", ["optimizer.rate"]),
        ("```python\nrun_worlds(4)\n```", ["run_worlds"]),
    ],
)
def test_names_missing_in_the_tree_are_reported(text: str, wrong: list[str]) -> None:
    assert sorted(wrong_names(text, ROOT)) == sorted(wrong)


# The drawing of the packages


@dataclass(frozen=True, kw_only=True)
class Level:
    """A line of the drawing: its packages and modules, which may import each other."""

    patterns: tuple[str, ...]
    without_torch: bool


def drawn_levels() -> list[Level]:
    """Read the drawing of docs/architecture.md, the topmost line first."""
    section = ARCHITECTURE.read_text(encoding="utf-8").partition("## Packages")[2]
    match = FENCE.search(section)
    assert match is not None, "no drawing of the packages"
    levels = []
    for line in match[2].splitlines():
        tokens = re.match(r"(?:[\w./*{},]+(?:/|\.py) *)+", line)
        assert tokens is not None, line
        patterns = [one for token in tokens[0].split() for one in expanded(token)]
        levels.append(Level(patterns=tuple(patterns), without_torch=line.endswith("[no torch]")))
    return levels


def expanded(pattern: str) -> list[str]:
    """Expand braces as a shell does: a/{b,c}.py is a/b.py and a/c.py."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", pattern)
    if match is None:
        return [pattern]
    return [match[1] + choice + match[3] for choice in match[2].split(",")]


def level_of(module: str, levels: list[Level]) -> int:
    """Return the line of a module; the longest pattern that fits counts."""
    path = module.replace(".", "/")
    fits: list[tuple[int, int]] = []
    for number, level in enumerate(levels):
        for pattern in level.patterns:
            name = pattern.removesuffix(".py").removesuffix("/")
            if path == name or path.startswith(f"{name}/"):
                fits.append((len(name), number))
            elif pattern == "engine/*.py" and re.fullmatch(r"engine/\w+", path):
                fits.append((0, number))
    assert fits, f"{module} is not in the drawing of docs/architecture.md"
    return max(fits)[1]


def test_the_drawing_has_the_packages_in_the_order_of_imports() -> None:
    """ORDER in tests/test_imports.py lists them, the lowest first."""
    tree = ast.parse((ROOT / "tests" / "test_imports.py").read_text(encoding="utf-8"))
    (order,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER"
    )
    levels = drawn_levels()
    listed = [name for name in order.split() if name != "benchmarks"]
    drawn = [level_of(name, levels) for name in listed]
    assert drawn == sorted(drawn, reverse=True), [*zip(listed, drawn, strict=True)]
    assert {*drawn} == {*range(len(levels))}


def test_the_packages_that_are_drawn_without_torch_import_none() -> None:
    levels, graph = drawn_levels(), import_graph(ROOT, "engine", "models")
    packages = {name.rpartition(".")[0] for name in graph}
    modules = graph.keys() - packages
    light = {module for module in modules if levels[level_of(module, levels)].without_torch}
    assert len(light) > 20
    assert [chain for module in sorted(light) if (chain := path_to(graph, module, "torch"))] == []
