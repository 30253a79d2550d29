"""Evaluation of expressions by walking the syntax tree; nothing is compiled or executed."""

import ast
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

from engine.config.language import builtin_functions, calls, operations
from engine.config.language.forbidden_syntax import NOT_ALLOWED, name_of
from engine.config.language.limits import EXPRESSION_DEPTH, Budget, ConfigValueError
from engine.config.language.source_text import Source
from engine.config.values import COMMAND_LINE, Symbol, TrackedDict
from engine.errors import Problem

T = TypeVar("T")
MAX_SUGGESTED_AMONG = 100  # names; comparing strings is slow
SUGGESTED_LENGTH = 40


class UnresolvedValueError(Exception):
    """A value is missing for a reason that was already reported."""


UNRESOLVED = object()
"""The value of a name whose assignment failed."""


@dataclass(frozen=True)
class Module:
    """Another config file, imported by name: its values are its attributes."""

    file: str
    values: TrackedDict


class Evaluator:
    """Evaluates expressions of one ``source`` over the names of ``scope``."""

    def __init__(
        self,
        source: Source,
        scope: TrackedDict,
        budget: Budget,
        environ: Mapping[str, str],
        report: Callable[[Problem], None],
    ) -> None:
        self.source = source
        self.scope = scope
        self.budget = budget
        self.complete = True  # False: an import failed, so that any name may be missing
        self.environ = environ
        self._report = report
        self._depth = 0

    def evaluate(self, node: ast.expr) -> object:
        """Return the value of ``node``; if there is none, report why and raise
        UnresolvedValueError."""
        self._depth += 1
        try:
            if self._depth > EXPRESSION_DEPTH:
                raise ConfigValueError(
                    f"an expression nested more than {EXPRESSION_DEPTH} levels deep"
                )
            value = self._value(node)
            self.budget.charge(value)
            return value
        except ConfigValueError as error:
            raise self.fail(node, f"{self.source.excerpt(node)}{error}") from None
        finally:
            self._depth -= 1

    def fail(self, node: ast.AST, message: str, *, column: bool = False) -> UnresolvedValueError:
        """Report a problem at ``node`` and return the exception to raise."""
        self._report(self.source.problem(node, message, column=column))
        return UnresolvedValueError()

    def forbid(self, node: ast.AST) -> UnresolvedValueError:
        """Report a construct that a config may not contain and return the exception to raise."""
        return self.fail(node, f"{name_of(node)} {NOT_ALLOWED}", column=True)

    def each(self, steps: Iterable[Callable[[], T]]) -> list[T]:
        """Run all steps and return their results, so that the problems of all steps are
        reported."""
        results: list[T] = []
        known = True
        for step in steps:
            try:
                results.append(step())
            except UnresolvedValueError:
                known = False
        if not known:
            raise UnresolvedValueError
        return results

    def items(self, nodes: Sequence[ast.expr]) -> list[object]:
        """Return the values of ``nodes``, with ``*sequence`` unpacked."""
        return [*chain.from_iterable(self.each(partial(self._spread, node) for node in nodes))]

    def _spread(self, node: ast.expr) -> Sequence[object]:
        if not isinstance(node, ast.Starred):
            return [self.evaluate(node)]
        value = self.evaluate(node.value)
        if not isinstance(value, list | tuple):
            raise self.fail(node, f"* of {operations.kind(value)}, which is not a list")
        return value

    def _value(self, node: ast.expr) -> object:
        match node:
            case ast.Constant(value=float(value)) if math.isinf(value):
                raise ConfigValueError("too large for a float")
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return value
            case ast.Constant(value=value):
                what = operations.kind(value)
                raise self.fail(node, f"a constant of type {what} {NOT_ALLOWED}", column=True)
            case ast.Name():
                return self._name(node)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Call():
                return self._call(node)
            case ast.List(elts=items):
                return self.items(items)
            case ast.Tuple(elts=items):
                return tuple(self.items(items))
            case ast.Set(elts=items):
                return self._set(items)
            case ast.Dict():
                return self._dict(node)
            case ast.JoinedStr(values=parts):
                return "".join(map(str, self.items(parts)))
            case ast.FormattedValue():
                return self._formatted(node)
            case ast.BinOp(left, sign, right) if type(sign) in operations.BINARY:
                first, second = self.items([left, right])
                return operations.binary(type(sign), first, second)
            case ast.UnaryOp(sign, operand):
                return operations.unary(sign, self.evaluate(operand))
            case ast.BoolOp():
                return self._boolean(node)
            case ast.Compare():
                return self._compare(node)
            case ast.IfExp(test, body, orelse):
                return self.evaluate(body if operations.truth(self.evaluate(test)) else orelse)
            case ast.Subscript():
                return self._subscript(node)
            case _:
                raise self.forbid(node)

    def _name(self, node: ast.Name) -> object:
        name = node.id
        if name in self.scope:
            return self._known(self.scope[name])
        if name == "__file__" and self.source.path is not None:
            return str(self.source.path)
        if name.startswith("__"):
            raise self.fail(node, f"{name} {NOT_ALLOWED}", column=True)
        if name in builtin_functions.FUNCTIONS or name == "dict":
            raise self.fail(node, f"{name} is a function; a config can only call it")
        if not self.complete:
            raise UnresolvedValueError
        raise self.fail(node, f"{name} is not defined{self._suggestion(name)}")

    def _suggestion(self, name: str) -> str:
        if self.source.file == COMMAND_LINE:
            return "; a string needs quotes"
        known = [other for other in map(str, self.scope) if len(other) <= SUGGESTED_LENGTH]
        near = difflib.get_close_matches(name[:SUGGESTED_LENGTH], known[:MAX_SUGGESTED_AMONG], n=1)
        return f"; did you mean {near[0]}?" if near else ""

    def _attribute(self, node: ast.Attribute) -> object:
        if node.attr.startswith("__"):
            raise self.fail(node, f".{node.attr} {NOT_ALLOWED}", column=True)
        module = self.scope.get(node.value.id) if isinstance(node.value, ast.Name) else None
        if isinstance(module, Module):
            if node.attr not in module.values:
                raise ConfigValueError(f"{module.file} does not define {node.attr}")
            return self._known(module.values[node.attr])
        value = self.evaluate(node.value)
        if isinstance(value, Symbol):
            return Symbol(f"{value}.{node.attr}")
        what = operations.kind(value)
        raise self.fail(node, f".{node.attr} of {what} {NOT_ALLOWED}", column=True)

    def _known(self, value: object) -> object:
        if value is UNRESOLVED:
            raise UnresolvedValueError
        if isinstance(value, Module):
            raise ConfigValueError(
                f"{value.file} is a config file, not a value; use one of its names"
            )
        return value

    def _set(self, nodes: Sequence[ast.expr]) -> object:
        # a tuple in source order: the order of a set differs between processes
        values = self.items(nodes)
        for value in values:
            operations.check_key(value)
        return tuple(dict.fromkeys(values))

    def _dict(self, node: ast.Dict) -> object:
        table = TrackedDict()
        entries = zip(node.keys, node.values, strict=True)
        self.each(partial(self._entry, table, key, value) for key, value in entries)
        return table

    def _entry(self, table: TrackedDict, key_node: ast.expr | None, value_node: ast.expr) -> None:
        if key_node is None:
            table.update_from(self.table(value_node))
            return
        key, value = self.items([key_node, value_node])
        operations.check_key(key)
        table.put(key, value, self.source.origin(key_node))

    def table(self, node: ast.expr) -> TrackedDict:
        """Return the dict that is unpacked by ``**node``."""
        value = self.evaluate(node)
        if not isinstance(value, TrackedDict):
            raise self.fail(node, f"** of {operations.kind(value)}, which is not a dict")
        return value

    def _call(self, node: ast.Call) -> object:
        function = node.func
        try:
            if isinstance(function, ast.Name) and function.id not in self.scope:
                call = calls.builtin(function.id)
            else:
                call = calls.external(self.evaluate(function), self.environ)
        except calls.ForbiddenCallError as error:
            raise self.fail(node, str(error), column=True) from None
        return call(*self._arguments(node))

    def _arguments(self, node: ast.Call) -> tuple[list[object], TrackedDict]:
        """Evaluate the arguments of a call and report the problems of all of them."""
        args: list[object] = []
        kwargs = TrackedDict()
        steps: list[Callable[[], None]] = [lambda: args.extend(self.items(node.args))]
        steps += [partial(self._keyword, keyword, kwargs) for keyword in node.keywords]
        self.each(steps)
        return args, kwargs

    def _keyword(self, keyword: ast.keyword, kwargs: TrackedDict) -> None:
        given = TrackedDict()
        if keyword.arg is None:
            given = self.table(keyword.value)
        else:
            given.put(keyword.arg, self.evaluate(keyword.value), self.source.origin(keyword))
        for name in given:
            if not isinstance(name, str):
                raise self.fail(keyword, f"the argument {name!r} is not a name")
            if name in kwargs:
                raise self.fail(keyword, f"{name}= is given twice")
        kwargs.update_from(given)

    def _formatted(self, node: ast.FormattedValue) -> object:
        value = self.evaluate(node.value)
        spec = self.evaluate(node.format_spec) if node.format_spec else ""
        conversion = chr(node.conversion) if node.conversion > 0 else ""
        return operations.formatted(value, conversion, str(spec))

    def _boolean(self, node: ast.BoolOp) -> object:
        value: object = None
        for operand in node.values:
            value = self.evaluate(operand)
            if operations.truth(value) == isinstance(node.op, ast.Or):
                break
        return value

    def _compare(self, node: ast.Compare) -> object:
        left = self.evaluate(node.left)
        for sign, operand in zip(node.ops, node.comparators, strict=True):
            right = self.evaluate(operand)
            if right == calls.ENVIRON:
                right = list(self.environ)
            if not operations.compare(sign, left, right):
                return False
            left = right
        return True

    def _subscript(self, node: ast.Subscript) -> object:
        base = self.evaluate(node.value)
        key = self.key(node)
        if base == calls.ENVIRON:
            return calls.environment(self.environ, [key])
        return operations.index(base, key)

    def key(self, node: ast.Subscript) -> object:
        """Return the key or slice between the brackets of ``node``."""
        if isinstance(node.slice, ast.Slice):
            bounds = (node.slice.lower, node.slice.upper, node.slice.step)
            return slice(*[bound and self.evaluate(bound) for bound in bounds])
        return self.evaluate(node.slice)
