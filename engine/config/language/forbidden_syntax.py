"""Names, for messages, of the Python constructs that a config may not contain."""

import ast
from collections.abc import Mapping

NOT_ALLOWED = "is not allowed in a config file (configs are parsed, never executed)"
FORBIDDEN: Mapping[type[ast.AST], str] = {
    ast.AsyncFor: "a for loop",
    ast.AsyncFunctionDef: "a function",
    ast.AsyncWith: "a with block",
    ast.Assert: "assert",
    ast.Await: "await",
    ast.AugAssign: "the operator @=",
    ast.BinOp: "the operator @",
    ast.ClassDef: "a class",
    ast.Delete: "del",
    ast.DictComp: "a comprehension",
    ast.For: "a for loop",
    ast.FunctionDef: "a function",
    ast.GeneratorExp: "a comprehension",
    ast.Global: "global",
    ast.Lambda: "a lambda",
    ast.ListComp: "a comprehension",
    ast.Match: "match",
    ast.NamedExpr: "an assignment inside an expression",
    ast.Nonlocal: "nonlocal",
    ast.Raise: "raise",
    ast.Return: "return",
    ast.SetComp: "a comprehension",
    ast.Starred: "a starred expression here",
    ast.Try: "try",
    ast.TryStar: "try",
    ast.While: "a while loop",
    ast.With: "a with block",
    ast.Yield: "yield",
    ast.YieldFrom: "yield",
}


MODEL_SIZES = "model = dict(n_layer=..., n_head=..., n_embd=...)"


def names_in_model(tree: ast.Module) -> frozenset[str]:
    """Return the names read in assignments to ``model``, such as ``gpt`` in model =
    dict(type=gpt)."""
    return frozenset(
        name.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(map(_is_model, node.targets))
        for name in ast.walk(node.value)
        if isinstance(name, ast.Name)
    )


def _is_model(target: ast.expr) -> bool:
    while isinstance(target, ast.Subscript):
        target = target.value
    return isinstance(target, ast.Name) and target.id == "model"


def name_of(node: ast.AST) -> str:
    """Return the name of a construct for messages."""
    return FORBIDDEN.get(type(node), type(node).__name__)
