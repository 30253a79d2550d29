"""For any input the reader raises at most ConfigError, takes less than a second and executes no
code."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.values import Document
from tests.support.configs import FUZZ, read_safely, sentences

FOLDER = Path(__file__).parents[2]
CONFIGS = [
    path.read_bytes()
    for folder in ("foreign_configs", "bad_configs/reader")
    for path in sorted((FOLDER / folder).glob("*.py"))
]
WORDS = [
    *("x", "y", "model", "dict", "int", "os", "torch", "__import__", "__class__", "open", "lambda"),
    *("if", "else", "elif", "for", "in", "import", "from", "def", "not", "and", "or", "is", "None"),
    *("True", "9", "0", "1e999", "9" * 50, "'a'", '"""', "f'{x", "f'{1:9}'", "\\", "\t", "    "),
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        ".",
        "=",
        "==",
        "**",
        "*",
        "//",
        "%",
        "<<",
        "+=",
        "->",
    ),
    *(":=", "@", "~", "-", "\n", "\r", ";", "#", "...", "é", "\u2028", "\0", "await", "yield", "*"),
]
HOSTILE = [
    *("9**9**9", "'a' * 10**9", "[0] * 10**9", "1 << 10**9", "f'{1:999999999}'", "'%9999999d' % 1"),
    *("range(10**12)", "round(1, -10**9)", "__import__('os')", "open('x', 'w')", "eval('1')", "os"),
    *("os.system('touch x')", "torch.half()", "().__class__", "(lambda: 1)()", "[i for i in c]"),
    *(
        "{**d}",
        "[*c]",
        "os.environ",
        "os.environ['HOME']",
        "getattr(os, 'system')",
        "'\\ud800'",
        "...",
    ),
    *(
        "b.format(1)",
        "1j",
        "b''",
        "1e999",
        "2**1023 * 2",
        "int('9' * 5000)",
        "float('nan')",
        "print",
    ),
    *("os.path.join(b, E)", "os.path.abspath(E)", "os.path.expanduser(E)", "__file__"),
    *("(x := 1)", "str(torch)", "torch == 1", "c[10**30]", "dict(**torch)", "max()", "hash(torch)"),
]
FUNCTIONS = ["int", "float", "str", "len", "list", "tuple", "abs", "bool", "sum", "max", "range"]
OPERATORS = [*"+-*/%&|^<", "//", "**", "<<", ">>", "==", "in", "is", "and", "or", "not in"]
WILD = {
    "E": [  # expressions
        *HOSTILE,
        *("a", "b", "c", "d", "torch", "E.x", "E(E)", "E[E]", "E[E:E]", "-E", "~E", "(not E)"),
        *(
            "[E, *E]",
            "(E, E)",
            "{E: E, **E}",
            "{E, E}",
            "dict(E, c=E)",
            "(E if E else E)",
            "E(k=E)",
        ),
        *(
            "f'{c!r:{a}}'",
            "f'{b:{b}}'",
            "f'{torch}{d}'",
            "f'{c:{10**9}}'",
            "round(E, E)",
            "int(E, E)",
        ),
        *(f"(E {operator} E)" for operator in OPERATORS),
        *(f"{function}(E)" for function in FUNCTIONS),
    ],
    "T": ["a", "b", "c", "d", "torch.x", "(a, c)", "[*a]", "os", "__doc__", "()", "c[E]", "d[E]"],
    "P": [  # statements
        *(
            "T = E",
            "T = T = E",
            "T += E",
            "T **= E",
            "T |= E",
            "E",
            "a: E = E",
            "del T",
            "assert E",
        ),
        *("if E:\n    T = E\nelif E:\n    T = E\nelse:\n    T = E", "for T in E:\n    T = E"),
        *(
            "import a",
            "from a import b",
            "from . import a",
            "from .config import *",
            "import config",
        ),
    ],
}
GROWTH = [
    *("a = [a, a]", "a = a + a", "a += a", "b = [a, b]", "b = dict(a=a, b=b)", "a = [b] * 9"),
    *("s = s + s", "s = f'{s}{s}'", "s = f'{a}{b}'", "n = n * n", "n = n ** n", "n = n << n"),
    *("a[0] = b", "b['x'] = a", "a[0] = a", "c = a == b", "a = list(a)", "b |= dict(b)"),
    *("t = t(t)", "t = t[s]", "t = t.x", "b = dict(t=t)", "x, y = [a, b]", "a = (a, s, n, t)"),
]
KEYS = ["a", "d.a", "d.b.c", "new", "d", "a.b", "os", "dict", "__x__", ""]
TEXTS = st.text(max_size=200)
PLACES = st.integers(0, 2000)


@FUZZ
@given(data=st.one_of(st.binary(max_size=200), TEXTS.map(str.encode)))
def test_random_bytes_and_text_are_read_safely(tmp_path: Path, data: bytes) -> None:
    read_safely(tmp_path, data)


@FUZZ
@given(words=st.lists(st.sampled_from(WORDS), max_size=40), gap=st.sampled_from(["", " "]))
def test_random_tokens_are_read_safely(tmp_path: Path, words: list[str], gap: str) -> None:
    read_safely(tmp_path, gap.join(words).encode())


@FUZZ
@given(
    data=st.sampled_from(CONFIGS),
    other=st.sampled_from(CONFIGS),
    cuts=st.lists(st.tuples(PLACES, PLACES, st.integers(0, 40)), max_size=6),
)
def test_mutated_configs_are_read_safely(
    tmp_path: Path, data: bytes, other: bytes, cuts: list[tuple[int, int, int]]
) -> None:
    for to, start, length in cuts:
        to, start = to % (len(data) + 1), start % (len(other) + 1)
        data = data[:to] + other[start : start + length] + data[to + length // 2 :]
    read_safely(tmp_path, data)


@FUZZ
@given(program=st.lists(sentences(WILD, "P"), min_size=1, max_size=5))
def test_random_statements_are_read_safely(tmp_path: Path, program: list[str]) -> None:
    start = "import os, torch\na = 3\nb = 'text'\nc = [1, 2.5]\nd = dict(a=1, b=[2])\n"
    read_safely(tmp_path, (start + "\n".join(program)).encode())


@FUZZ
@given(program=st.lists(st.sampled_from(GROWTH), min_size=20, max_size=80))
def test_growing_programs_are_read_safely(tmp_path: Path, program: list[str]) -> None:
    start = "import t\na = [1, 2]\nb = dict(x=1)\ns = 'text'\nn = 3\n"
    read_safely(tmp_path, (start + "\n".join(program)).encode())


@FUZZ
@given(
    keys=st.lists(st.sampled_from(KEYS), min_size=4, max_size=4),
    values=st.lists(st.one_of(TEXTS, sentences(WILD, "E", 2)), max_size=4),
    loose=st.lists(TEXTS, max_size=1),
)
def test_random_overrides_are_read_safely(
    tmp_path: Path, keys: list[str], values: list[str], loose: list[str]
) -> None:
    text = b"import os\na = 3\nd = dict(a=1, b=[2])\nx = a\ny = d['a']\n"
    overrides = [f"{key}={value}" for key, value in zip(keys, values, strict=False)]
    result = read_safely(tmp_path, text, [*overrides, *loose])
    if isinstance(result, Document):
        assert all(result.origins[path].file == "command line" for path in result.overridden)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_expression_is_read_safely(tmp_path: Path, text: str) -> None:
    result = read_safely(tmp_path, f"import os, torch\nc = [1]\nd = {{}}\nx = {text}\n".encode())
    if isinstance(result, Document):
        value = result.values["x"]
        assert not (isinstance(value, float) and math.isinf(value))
