"""Reading one file: values equal those of Python, and have their positions."""

from pathlib import Path

import pytest

from engine.config.reader import read
from engine.config.values import Document, Origin, Symbol
from tests.support import python_reference

FOREIGN_CONFIGS = sorted((Path(__file__).parents[2] / "foreign_configs").glob("*.py"))
SNIPPETS = [
    "a = 1\nb: float = 2.5\nd = e = 'x' 'y'\n",
    "a = (7 // 2, 7 / 2, -7 % 3, 2**10, 2**-1, 1 << 4, 255 >> 2, 6 & 3, 6 | 3, 6 ^ 3, ~5, +True)\n",
    "a = 'ab' * 2 + 'c'\nb = [1] * 3 + [2]\nc = 2 * (1,) + (2,)\n",
    "a, (b, [c]) = 1, (2, [3])\n[d, e] = [4, 5]\n",
    "a = not 0 or 1 / 0\nb = 0 and 1 / 0\nc = [] or () or {} or None\nd = 1 and 2\n",
    "a = 1 < 2 <= 2 != 3 > 2 >= 2 == 2\nb = 1 < 0 < 1 / 0\nc = 2 in (1, 2) and 3 not in [1]\n",
    "a = None is None\nb = 'x' is not None\nc = 'a' in dict(a=1)\nd = 'b' in 'abc'\n",
    "a = 1 if [] else 2 if '' else 3\n",
    "a = {'x': 1, **dict(y=2, x=3)}\nb = dict({'p q': 1}, z=[*range(3), *(7, 8)])\nc = a | b\n",
    "a = dict(b=[0, 1])\na['b'][1] = dict(c=2)\n",
    "a = [1]\nb = a\na += [2]\nb[0] = 5\na *= 2\n",
    "a = dict(x=1)\nb = a\na |= dict(y=2)\nc = (a, b)\n",
    "a = 5\na += 2\na //= 2\na **= 3\na -= 1\na <<= 2\n",
    "a = [10, 20, 30, 40]\nb = (a[0], a[-1], a[1:3], a[::-2], 'text'[1], 'text'[:2])\n",
    "a = 3\nb = 0.25\nc = f'{a:>5}|{b:.1%}|{a!r:0<4}|{{}}|{a + 1:{a}d}|{b=}|{[a, b]}|{\"é\"!a}'\n",
    "a = (abs(-2), bool(''), float('1e3'), int('12'), int(2.7), int('ff', 16), len('abc'))\n",
    "a = (max(1, 2), max([3, 1]), min(4, 2), round(2.5), round(1.234, 2))\n",
    "a = (str(1.5), sum([1, 2.5]), sum((1, 2), 3))\n",
    "a = (list('ab'), list(range(2, 8, 3)), tuple([1]), list(dict(q=1)), dict(), str(), tuple())\n",
    "if 1 > 2:\n    a = 1\nelif 'x':\n    a = 2\n    if a == 2:\n        b = 3\nelse:\n    a = 4\n",
    "if 0:\n    a = 0\n" + "elif 0:\n    a = 1\n" * 500 + "else:\n    a = 2\n",
    "import os\na = os.environ['KNOWN']\nb = os.environ.get('NOPE', 3)\nc = os.getenv('NOPE')\n",
    "from os import environ as e, getenv\na = int(e.get('SIZE')) * 2\nb = 'SIZE' in e\n"
    "c = getenv('NOPE', default='d')\n",
    "import os\nimport os.path as p\nfrom os.path import join, split as s\n"
    "a = join('a', 'b/', '../c', p.basename('x/y.txt'), os.path.dirname('/u/v'))\n"
    "b = (p.abspath('a/../b'), os.path.normpath('a//b/.'), p.isabs('/a'), os.getcwd())\n"
    "c = (s('a/b'), p.splitext('a.tar.gz'), join('', *['q'] * 3))\n",
    "from __future__ import annotations\nx: list[nothing] = [1]\n",
    "import a.b, c as d, e.f as g\nfrom h.i import j, k as l\n"
    "x = (a.b.c(1, m=[2])['n'].o, d, g, j(), l[0])\n",
    "from torch import half, float16\na = half == half\nb = half != float16\nc = half is None\n",
    "'a docstring'\npass\nx = 1  # a comment\n'another'\n",
    "größe = 3\nx = größe + 1\n",
    "a = 1; b = 2\r\nc = (a,\r\n  b)\r\n",
    "\ufeffa = 1\n",
    'a = 0x1F + 0o17 + 0b11 + 1_000\nb = 1e-3 + .5 + 5.\nc = r\'\\n\' \'a\\tb\' """x\ny"""\n',
]


def read_text(tmp_path: Path, text: str, *overrides: str, **environ: str) -> Document:
    path = tmp_path / "config.py"
    path.write_text(text, encoding="utf-8", newline="")
    return read(path, overrides, environ)


def test_dunder_file_gives_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(
        "import os\nHERE = os.path.dirname(os.path.abspath(__file__))\n"
    )
    text = (
        "import os\nfrom .base import HERE\nFILE = __file__\nDATA = os.path.join(HERE, 'a.txt')\n"
    )
    values = read_text(tmp_path, text).values
    assert values["FILE"] == str(tmp_path / "config.py")
    assert values["DATA"] == str(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("path", "expanded"),
    [("~", "/h/me"), ("~/a/~", "/h/me/a/~"), ("a/~", "a/~"), ("", ""), ("/~/a", "/~/a")],
)
def test_home_folder_is_expanded_from_the_given_environment(
    tmp_path: Path, path: str, expanded: str
) -> None:
    text = f"import os\na = os.path.expanduser({path!r})\n"
    assert read_text(tmp_path, text, HOME="/h/me").values["a"] == expanded


def without_os(document: Document) -> dict[str, object]:
    return {
        name: value
        for name, value in document.values.items()
        if not (isinstance(value, Symbol) and value.name.split(".")[0] == "os")
    }


@pytest.mark.parametrize("text", SNIPPETS, ids=range(len(SNIPPETS)))
def test_values_equal_those_of_python(tmp_path: Path, text: str) -> None:
    environ = {"KNOWN": "here", "SIZE": "21"}
    document = read_text(tmp_path, text, **environ)
    expected = python_reference.run(text.lstrip("\ufeff"), environ)
    assert repr(without_os(document)) == repr(expected)  # repr tells 1 from True and 1.0


@pytest.mark.parametrize("path", FOREIGN_CONFIGS, ids=lambda path: path.stem)
def test_colossal_ai_configs_have_the_values_of_python(path: Path) -> None:
    expected = python_reference.run(path.read_text(encoding="utf-8"))
    assert repr(without_os(read(path))) == repr(expected)


def test_symbols_record_names_and_calls(tmp_path: Path) -> None:
    document = read_text(
        tmp_path,
        "import torch.optim\nfrom colossalai.amp import AMP_TYPE as T\n"
        "from a import S\nx = (torch.half, T.NAIVE, S(), S(1, k=T), S().half['a'])\n",
    )
    called = Symbol("a.S", (1,), {"k": Symbol("colossalai.amp.AMP_TYPE")})
    assert document.values["x"] == (
        Symbol("torch.half"),
        Symbol("colossalai.amp.AMP_TYPE.NAIVE"),
        Symbol("a.S", (), {}),
        called,
        Symbol("a.S().half['a']"),
    )
    assert str(called) == "a.S(1, k=colossalai.amp.AMP_TYPE)"
    assert document.imported == {"torch", "T", "S"}


def test_every_value_has_the_position_of_its_assignment(tmp_path: Path) -> None:
    document = read_text(
        tmp_path,
        "base = dict(lr=1,\n"
        "            é=2, betas=(0.9,\n"
        "              dict(x=0)))\n"
        "optimizer = dict(base, lr=2)\n"
        "optimizer['eps'] = 3\n"
        "optimizer |= {'lr':\n"
        "  4}\n"
        "a, b = 1, 2\n"
        "a += 1\n"
        "if a:\n"
        "    b = 3\n",
    )

    def place(*path: str) -> tuple[int, int]:
        origin = document.origins[path]
        assert origin.file == str(tmp_path / "config.py")
        return origin.line, origin.column

    assert place("base") == (1, 1)
    assert place("base", "lr") == (1, 13)
    assert place("base", "betas") == (2, 18)  # characters, not bytes
    assert place("base", "betas", "1", "x") == (3, 20)
    assert place("optimizer") == (6, 1)
    assert place("optimizer", "betas") == (2, 18)  # where it was written, not where it was used
    assert place("optimizer", "lr") == (6, 15)
    assert place("optimizer", "eps") == (5, 1)
    assert place("a") == (9, 1)
    assert place("b") == (11, 5)
    assert str(document.origin(("base", "betas", "0"))).endswith("config.py:2")  # of its parent
    with pytest.raises(KeyError):
        document.origin(("nothing", "here"))


def test_positions_have_the_path_given_by_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "a.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    assert read("configs/a.py").origins["x",] == Origin("configs/a.py", 1, 1)


def test_names_read_and_imported_by_the_file_are_recorded(tmp_path: Path) -> None:
    document = read_text(
        tmp_path,
        "import torch\nA = 1\nB = 2\nC = dict(x=[A])\nD = f'{B}'\nE = 1\nE += 1\n"
        "if False:\n    F = G\n",
    )
    names = {"torch", "A", "B", "C", "D", "E", "F", "G"}
    assert document.read_names & names == {"A", "B", "G"}
    assert document.imported == {"torch"}


def test_imported_name_that_is_assigned_is_not_imported(tmp_path: Path) -> None:
    document = read_text(tmp_path, "from titans.loss import loss, other\nloss = dict(type=loss)\n")
    assert document.imported == {"other"}


def test_values_are_independent_copies(tmp_path: Path) -> None:
    document = read_text(tmp_path, "a = dict(x=[1])\nb = a\n")
    a, b = document.values["a"], document.values["b"]
    assert type(a) is dict
    assert a == b
    assert a is not b
    assert a["x"] is not b["x"]


def test_process_environment_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH", "9")
    text = "import os\nBATCH_SIZE = int(os.environ.get('BATCH', 4))\n"
    assert read_text(tmp_path, text).values["BATCH_SIZE"] == 4
    assert read_text(tmp_path, text, BATCH="16").values["BATCH_SIZE"] == 16
