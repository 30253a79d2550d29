"""Execution of a config file's statements in order: assignments, imports and ``if``."""

import ast
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from engine.config.language import operations
from engine.config.language.expressions import UNRESOLVED, Evaluator, Module, UnresolvedValueError
from engine.config.language.forbidden_syntax import (
    MODEL_SIZES,
    NOT_ALLOWED,
    name_of,
    names_in_model,
)
from engine.config.language.import_paths import file_in, locate
from engine.config.language.limits import ConfigValueError
from engine.config.values import Origin, Symbol, TrackedDict


class Interpreter:
    """Executes the statements of one file; its names are then in ``scope``.

    ``overrides`` has the command line's values of top-level names, which assignments in the file do
    not change. ``inherit`` reads another file.
    """

    def __init__(
        self,
        path: Path,
        evaluator: Evaluator,
        overrides: TrackedDict,
        inherit: Callable[[Path], "Interpreter"],
    ) -> None:
        self.evaluator = evaluator
        self.scope = evaluator.scope
        self.scope.update_from(overrides)
        self.imported: set[str] = set()
        self._path = path
        self._overrides = overrides
        self._inherit = inherit
        self._tree = ast.Module(body=[], type_ignores=[])

    def run(self, tree: ast.Module) -> None:
        """Execute the whole file."""
        self._tree = tree
        self._run_body(tree.body)

    def _run_body(self, body: Sequence[ast.stmt]) -> None:
        """Execute ``body``; a statement that fails leaves its names unresolved."""
        for node in body:
            try:
                self._statement(node)
            except UnresolvedValueError:
                self._unbind(node)
            except ConfigValueError as error:
                self.evaluator.fail(node, str(error))
                self._unbind(node)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets, value):
                self._assign(targets, value)
            case ast.AnnAssign(target, _, None):
                name = self.evaluator.source.excerpt(target).removesuffix(": ")
                message = f"an annotation without a value sets nothing; write {name} = VALUE"
                raise self.evaluator.fail(node, message)
            case ast.AnnAssign(target, _, ast.expr() as value):
                self._assign([target], value)
            case ast.AugAssign():
                self._augment(node)
            case ast.If():
                self._branch(node)
            case ast.Import(names):
                for alias in names:
                    self._import(node, alias)
            case ast.ImportFrom():
                self._import_from(node)
            case ast.Expr(ast.Constant(value=str())) | ast.Pass():
                pass
            case ast.Expr(value):
                self.evaluator.evaluate(value)
                message = "an expression on its own has no effect; assign it to a name"
                raise self.evaluator.fail(node, message)
            case ast.FunctionDef(name) | ast.ClassDef(name) if name in names_in_model(self._tree):
                message = f"{name_of(node)} {NOT_ALLOWED}; set the model's sizes: {MODEL_SIZES}"
                raise self.evaluator.fail(node, message, column=True)
            case _:
                raise self.evaluator.forbid(node)

    def _unbind(self, node: ast.stmt) -> None:
        """Mark the names that ``node`` would have bound as unresolved."""
        origin = self.evaluator.source.origin(node)
        for inner in ast.walk(node):
            match inner:
                case ast.Name(name, ast.Store()) | ast.FunctionDef(name) | ast.ClassDef(name):
                    self._bind(name, UNRESOLVED, origin)
                case ast.alias("*"):
                    self.evaluator.complete = False
                case ast.alias(name, asname):
                    self._bind(asname or name.partition(".")[0], UNRESOLVED, origin)

    def _bind(self, name: str, value: object, origin: Origin, *, foreign: bool = False) -> None:
        """Set ``name`` unless the command line overrides it."""
        if name in self._overrides:
            return
        self.scope.put(name, value, origin)
        self.imported.discard(name)
        if foreign:
            self.imported.add(name)

    def _is_overridden(self, target: ast.expr) -> bool:
        match target:
            case ast.Name(name):
                return name in self._overrides
            case ast.Subscript(value=base):
                return self._is_overridden(base)
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return all(map(self._is_overridden, items))
        return False

    def _assign(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        assigned = [target for target in targets if not self._is_overridden(target)]
        if assigned:
            result = self.evaluator.evaluate(value)
            self.evaluator.each(partial(self._store, target, result) for target in assigned)

    def _store(self, target: ast.expr, value: object) -> None:
        match target:
            case ast.Name(name):
                self._store_name(target, name, value)
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                starred = [part for part in targets if isinstance(part, ast.Starred)]
                if starred:
                    raise self.evaluator.forbid(starred[0])
                if not isinstance(value, list | tuple):
                    raise ConfigValueError(
                        f"{operations.kind(value)} is assigned to {len(targets)} names; assign a "
                        f"tuple of {len(targets)} values"
                    )
                if len(value) != len(targets):
                    raise ConfigValueError(
                        f"{len(value)} values are assigned to {len(targets)} names; assign one "
                        "value to each"
                    )
                for part, item in zip(targets, value, strict=True):
                    self._store(part, item)
            case ast.Subscript():
                if not self._is_overridden(target):
                    self._store_item(target, value)
            case _:
                message = f"an assignment to an attribute {NOT_ALLOWED}"
                raise self.evaluator.fail(target, message, column=True)

    def _store_name(self, target: ast.Name, name: str, value: object) -> None:
        if name.startswith("__"):
            raise self.evaluator.fail(target, f"{name} {NOT_ALLOWED}", column=True)
        if name == "_base_":
            message = "_base_ is not supported; to inherit base.py, write 'from .base import *'"
            raise self.evaluator.fail(target, message)
        self._bind(name, value, self.evaluator.source.origin(target))

    def _store_item(self, target: ast.Subscript, value: object) -> None:
        container = self.evaluator.evaluate(target.value)
        key = self.evaluator.key(target)
        if isinstance(container, TrackedDict):
            operations.check_key(key)
            container.put(key, value, self.evaluator.source.origin(target))
        elif isinstance(container, list) and isinstance(key, int):
            operations.index(container, key)
            container[key] = value
        else:
            raise ConfigValueError(f"items of {operations.kind(container)} cannot be assigned")
        self.evaluator.budget.charge(container)

    def _augment(self, node: ast.AugAssign) -> None:
        if self._is_overridden(node.target):
            return
        target = node.target
        if isinstance(target, ast.Name):
            read: ast.expr = ast.copy_location(ast.Name(target.id, ast.Load()), target)
        else:
            read = target
        left, right = self.evaluator.items([read, node.value])
        if type(node.op) not in operations.BINARY:
            raise self.evaluator.forbid(node)
        result = operations.in_place(type(node.op), left, right)
        self.evaluator.budget.charge(result)
        self._store(target, result)

    def _branch(self, node: ast.If) -> None:
        while not operations.truth(self.evaluator.evaluate(node.test)):
            match node.orelse:
                case [ast.If() as node]:  # elif
                    continue
            self._run_body(node.orelse)
            return
        self._run_body(node.body)

    def _import(self, node: ast.Import, alias: ast.alias) -> None:
        first, _, rest = alias.name.partition(".")
        located = locate(alias.name, 0, self._path)
        if located is None:
            symbol = Symbol(alias.name if alias.asname else first)
            self._bind_symbol(alias.asname or first, symbol, node)
        elif rest and not alias.asname:
            parent, _, name = alias.name.rpartition(".")
            raise ConfigValueError(
                f"{alias.name} has no name here; write 'from {parent} import {name}'"
            )
        else:
            self._bind_module(alias.asname or first, located, node)

    def _import_from(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if module == "__future__":
            return
        located = locate(module, node.level, self._path)
        for alias in node.names:
            if located is not None:
                self._import_name(node, alias, located)
            elif alias.name == "*":
                raise ConfigValueError(
                    f"{module} is not a config file; import its names one by one"
                )
            else:
                symbol = Symbol(f"{module}.{alias.name}")
                self._bind_symbol(alias.asname or alias.name, symbol, node)

    def _import_name(self, node: ast.ImportFrom, alias: ast.alias, located: Path) -> None:
        """Import one name of a config file, or one config file of a folder."""
        if located.is_dir():
            inner = file_in(located, [alias.name])
            if inner is not None:
                self._bind_module(alias.asname or alias.name, inner, node)
                return
            located = located / "__init__.py"
            if not located.is_file():
                raise ConfigValueError(f"no config file {alias.name}.py in {located.parent.name}")
        other = self._inherit(located)
        if alias.name == "*":
            self.evaluator.complete &= other.evaluator.complete
            for name in other.scope:
                if not str(name).startswith("_"):
                    self._bind_from(other, str(name), str(name))
        elif alias.name in other.scope:
            self._bind_from(other, alias.name, alias.asname or alias.name)
        elif other.evaluator.complete:
            raise ConfigValueError(f"{other.evaluator.source.file} does not define {alias.name}")
        else:
            raise UnresolvedValueError

    def _bind_from(self, other: "Interpreter", name: str, target: str) -> None:
        value, origin = other.scope[name], other.scope.origins[name]
        self._bind(target, value, origin, foreign=name in other.imported)

    def _bind_symbol(self, name: str, symbol: Symbol, node: ast.stmt) -> None:
        self._bind(name, symbol, self.evaluator.source.origin(node), foreign=True)

    def _bind_module(self, name: str, path: Path, node: ast.stmt) -> None:
        if path.is_dir():
            raise ConfigValueError(f"{path.name} is a folder; import a config file in it")
        other = self._inherit(path)
        module = Module(other.evaluator.source.file, other.scope)
        self._bind(name, module, self.evaluator.source.origin(node))
