"""Who imports whom: read off the syntax trees, nothing is run."""

import ast
from collections.abc import Iterator
from pathlib import Path

Graph = dict[str, set[str]]  # module -> the modules that it names in imports, anywhere in it


def import_graph(root: Path, *tops: str) -> Graph:
    """The imports of every module of the packages and modules ``tops`` in the folder ``root``."""
    files = [file for top in tops for file in [root / f"{top}.py", *(root / top).rglob("*.py")]]
    return {
        _module(file.relative_to(root)): set(_imports(file, root))
        for file in files
        if file.is_file()
    }


def path_to(graph: Graph, start: str, target: str) -> list[str] | None:
    """The shortest chain of imports by which ``start`` reaches ``target``; None if it does not.

    Importing a module runs the packages around it, so their imports count as its own.
    """
    seen, chains = {start}, [[start]]
    while chains:
        chain = chains.pop(0)
        for name in sorted(_all_imports(graph, chain[-1])):
            if name == target or name.startswith(target + "."):
                return [*chain, name]
            if name in graph and name not in seen:
                seen.add(name)
                chains.append([*chain, name])
    return None


def _all_imports(graph: Graph, module: str) -> set[str]:
    parts = module.split(".")
    packages = {".".join(parts[:end]) for end in range(1, len(parts))}
    return graph[module] | (packages & graph.keys())


def _module(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(file: Path, root: Path) -> Iterator[str]:
    """Full names; ``from a import b`` names ``a.b`` where that is a module of ours, else ``a``."""
    tree = ast.parse(file.read_text("utf-8"), str(file))
    package = file.relative_to(root).parent.parts
    for node in _run_time(tree):
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
    """The nodes below ``node``, but for what stands under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _run_time(other)
            continue
        yield child
        yield from _run_time(child)
