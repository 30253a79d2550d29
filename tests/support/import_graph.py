"""The import graph of modules, from their syntax trees; no module is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

Graph = dict[str, set[str]]
"""Modules, each with the modules that it imports, at any depth of its code."""


def import_graph(root: Path, *tops: str, type_checking: bool = False) -> Graph:
    """Return the imports of every module of the packages and modules `tops` in the folder `root`.

    Args:
        type_checking: include the imports under `if TYPE_CHECKING`, which do not run.
    """
    files = [file for top in tops for file in [root / f"{top}.py", *(root / top).rglob("*.py")]]
    return {
        _module(file.relative_to(root)): set(_imports(file, root, type_checking))
        for file in files
        if file.is_file()
    }


def path_to(graph: Graph, start: str, target: str) -> list[str] | None:
    """Return the shortest chain of imports from `start` to `target`; None if there is none.

    Importing a module runs the packages around it, so their imports count as its own.
    """
    visited, chains = {start}, [[start]]
    while chains:
        chain = chains.pop(0)
        for name in sorted(_all_imports(graph, chain[-1])):
            if name == target or name.startswith(target + "."):
                return [*chain, name]
            if name in graph and name not in visited:
                visited.add(name)
                chains.append([*chain, name])
    return None


def cycles(graph: Graph) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others, sorted."""
    reached = {module: _reached(graph, module) for module in graph}
    groups = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in graph
        if module in reached[module]
    }
    return sorted(sorted(group) for group in groups)


def _reached(graph: Graph, start: str) -> set[str]:
    """Return the modules of `graph` that `start` imports, directly or through others."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] & graph.keys() - reached:
            reached.add(name)
            waiting.append(name)
    return reached


def _all_imports(graph: Graph, module: str) -> set[str]:
    parts = module.split(".")
    packages = {".".join(parts[:end]) for end in range(1, len(parts))}
    return graph[module] | (packages & graph.keys())


def _module(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(file: Path, root: Path, type_checking: bool) -> Iterator[str]:
    """Yield full names; `from a import b` names `a.b` if that is a module of ours, else `a`."""
    tree = ast.parse(file.read_text("utf-8"), str(file))
    package = file.relative_to(root).parent.parts
    for node in ast.walk(tree) if type_checking else _run_time(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*around, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = root.joinpath(*base.split("."), alias.name)
                is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
                yield f"{base}.{alias.name}" if is_module else base


def _run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below `node`, without the bodies of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _run_time(other)
            continue
        yield child
        yield from _run_time(child)
