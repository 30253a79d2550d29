"""The commands, options and settings that messages, help texts and docs name exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from engine import discover
from engine.config.aliases import ALIASES
from engine.config.fields import takes
from engine.config.language.limits import Budget
from engine.config.overrides import parse
from engine.config.schema import all_settings
from engine.errors import Problem
from launch.arguments import add_launch_options
from launch.cli import COMMANDS
from launch.parser import Parser

ROOT = Path(__file__).parents[1]
GAP = "{}"  # stands for what an f-string fills in
GPU_CHECK = "gpu-check"
TOOLS = {"python", "pytest", "ruff", "mypy", "pre-commit", "torchrun", "test", "setup", "help"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")
COMMAND = re.compile(r"(?:cuboid|\./run\.sh) +([a-z][\w|-]*)(?![\w.])([^`\n;]*)")
SECTION = re.compile(r"\b(\w+) ?= ?dict\(((?:[^()]|\([^()]*\))*)\)")
KEYWORD = re.compile(r"(\w+)=")
CALL = re.compile(r"\w\((?:[^()]|\([^()]*\))*\)")
STATED = re.compile(
    r"(?<![\w./\"'$<{-])([A-Za-z_][\w.]*)=(?!=)('[^']*'|\"[^\"]*\"|[^\s`'\",;:)\]|=]+(?!=))"
)
ENVIRONMENT = re.compile(r"environ(?:\.get\(|\[)[\"'](\w+)|\$\{(\w+):-|^  (\w+)=", re.MULTILINE)
OF_LIBRARIES = ("NCCL_", "GLOO_", "OMP_", "PYTORCH_", "CUDA_", "TORCHDYNAMO_")
# Keys that messages compare or cite: sizes of a model, Hugging Face's config.
CITED = {
    "is_host",
    "n_embd",
    "n_head",
    "head_dim",
    "vocab_size",
    "model_type",
    "activation_function",
}
# Of pytest-xdist, TensorBoard, Slurm and TorchX.
OF_OTHER_PROGRAMS = {"--dist", "--logdir", "--signal", "--scheduler"}
# By command: options of the program that its ranks run, which the command itself does not have.
OF_STARTED_PROGRAMS = {"throughput": frozenset({"--result"})}
ARGUMENT = re.compile(r" *(?:\[|--|[A-Z]{2,}\b|\.?/)")


def python_files() -> list[Path]:
    return [file for top in ("engine", "launch", "models") for file in (ROOT / top).rglob("*.py")]


def messages(file: Path) -> Iterator[str]:
    """Yield the strings of a module without docstrings, and the text of its f-strings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(ast.Constant() as docstring):
                skipped.add(id(docstring))
            case ast.JoinedStr(values=parts):
                skipped |= {id(part) for part in parts}
                texts = [part.value if isinstance(part, ast.Constant) else GAP for part in parts]
                yield "".join(map(str, texts))
            case ast.Constant(value=str(text)) if id(node) not in skipped:
                yield text


def pages() -> dict[str, str]:
    """Return the texts for users, by file."""
    script = (ROOT / "run.sh").read_text(encoding="utf-8")
    usage = re.findall(r"<<EOF\n(.*?)^EOF", script, re.DOTALL | re.MULTILINE)
    said = re.findall(r"(?:say|refuse|fail) \"(.*?)\"", script)
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests" / "README.md"]
    texts = {
        str(path.relative_to(ROOT)): "\n".join(code_of(without_names_of_others(path)))
        for path in paths
        if path.name != "CHANGELOG.md"
    }
    return texts | {"run.sh": "\n".join([*usage, *said])}


def without_names_of_others(path: Path) -> str:
    """Return a page without the first column of the tables of other trainers' flags."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^\|[^|]*\|", "|", text, flags=re.M) if path.stem == "other-trainers" else text


def code_of(page: str) -> Iterator[str]:
    """Yield the code of a page: spans, and lines of blocks without their comments."""
    fenced = False
    for line in page.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip().partition("  #")[0]
        else:
            yield from re.findall(r"`([^`]+)`", line)


@cache
def options(command: str) -> frozenset[str]:
    """Return the options of a command of cuboid, or of run.sh's gpu-check."""
    if command == GPU_CHECK:
        source = (ROOT / "benchmarks" / "gpu.py").read_text(encoding="utf-8")
        return frozenset(re.findall(r"add_argument\(\s*\"(--[\w-]+)", source))
    parser = Parser(prog=command)
    import_module(f"{COMMANDS}.{command}").add_arguments(parser)
    return frozenset(parser._option_string_actions)


def commands() -> list[str]:
    return [*discover.module_names(COMMANDS), GPU_CHECK]


@cache
def all_options() -> frozenset[str]:
    """Return the options of all commands, of torchrun and of the programs that it starts."""
    scripts = Parser(prog="train_gpt.py")
    add_launch_options(scripts)
    others = (scripts._option_string_actions, get_args_parser()._option_string_actions)
    return frozenset({"--version", *OF_OTHER_PROGRAMS}.union(*map(options, commands()), *others))


def wrong_commands(text: str) -> Iterator[str]:
    """Yield commands that do not exist, and options that a command does not have."""
    for name, rest in COMMAND.findall(text):
        if name in commands():
            for option in OPTION.findall(rest.partition("cuboid ")[0]):
                if option not in options(name):
                    yield f"{name} {option}"
        elif name not in TOOLS and ARGUMENT.match(rest):
            yield name


def wrong_settings(text: str) -> Iterator[str]:
    """Yield settings that do not exist or do not accept the value in the text."""
    for section, inner in SECTION.findall(text):
        for key in KEYWORD.findall(CALL.sub("", inner)):
            if f"{section}.{key}" not in ALIASES:
                yield f"{section}.{key}"
    for name, value in STATED.findall(CALL.sub("", SECTION.sub("", text))):
        if name.startswith(OF_LIBRARIES) or name in {*variables(), *CITED, "KEY"}:
            continue
        if name not in ALIASES:
            yield name
        elif not accepts(name, value):
            yield f"{name}={value}"


def accepts(name: str, value: str) -> bool:
    """Return whether a setting accepts a value; placeholders are accepted."""
    if not value or GAP in value or "..." in value or (value.isupper() and value.isalpha()):
        return True
    problems: list[Problem] = []
    ((_, given),) = parse([f"{name}={value}"], Budget(), problems.append).items()
    meaning = ALIASES[name]
    meant = meaning(given) if callable(meaning) else {meaning: given}
    fields = all_settings()
    return all(takes(fields[one], item) for one, item in meant.items() if one in fields)


@cache
def variables() -> frozenset[str]:
    """Return the environment variables that the code or run.sh reads."""
    files = [*python_files(), *ROOT.glob("*_gpt.py"), ROOT / "run.sh"]
    found = [ENVIRONMENT.findall(file.read_text(encoding="utf-8")) for file in files]
    return frozenset(name for each in found for names in each for name in names if name)


@pytest.mark.parametrize("file", python_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_messages_name_existing_commands_options_and_settings(file: Path) -> None:
    command = file.stem if file.parent.name == "commands" else None
    known = options(command) if command in commands() else all_options()
    known |= OF_STARTED_PROGRAMS.get(str(command), frozenset())
    wrong = []
    for text in messages(file):
        wrong += [*wrong_commands(text), *wrong_settings(text)]
        if "pip install" not in text and not COMMAND.search(text):
            wrong += [option for option in OPTION.findall(text) if option not in known]
    assert wrong == []


@pytest.mark.parametrize("page", pages())
def test_pages_name_existing_commands_options_and_settings(page: str) -> None:
    wrong = []
    for line in pages()[page].splitlines():
        wrong += [*wrong_commands(line), *wrong_settings(line)]
        if not line.startswith(("#SBATCH", "srun", "sbatch", "pip")) and not COMMAND.search(line):
            wrong += [option for option in OPTION.findall(line) if option not in all_options()]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("cuboid import FOLDER --force", ["import --force"]),
        ("`cuboid frobnicate FILE`", ["frobnicate"]),
        ("./run.sh generate --prompt x --max-tokens 3", ["generate --max-tokens"]),
        ("such as max_steps=20", ["max_steps"]),
        ("set MAX_STEPS=20 or MAX_STEPS=0", ["MAX_STEPS=0"]),
        ("optimizer = dict(lr=1, rate=3)", ["optimizer.rate"]),
        ("schedule='zb'; precision='bf16'", ["schedule='zb'"]),
        ("type='adam' is Adam", ["type"]),
    ],
)
def test_names_that_do_not_exist_are_reported(text: str, wrong: list[str]) -> None:
    assert [*wrong_commands(text), *wrong_settings(text)] == wrong
