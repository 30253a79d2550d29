"""KEY=VALUE on the command line: the types of values, and the assignments they replace."""

from pathlib import Path

import pytest

from engine.config.reader import read
from engine.config.values import Document, Origin, Symbol
from engine.errors import ConfigError

CONFIG = """\
from titans.model.gpt import gpt2_small
TENSOR_PARALLEL = 2
PIPELINE = 2
DEPTH = int('not a number') if TENSOR_PARALLEL == 3 else 1
if TENSOR_PARALLEL == 4:
    MODE = '2d'
else:
    MODE = '1d'
parallel = dict(pipeline=PIPELINE, tensor=dict(size=TENSOR_PARALLEL, mode=MODE))
optimizer = dict(type='adam', lr=1e-3)
zero = None
"""


def read_config(tmp_path: Path, *overrides: str, text: str = CONFIG) -> Document:
    path = tmp_path / "config.py"
    path.write_text(text)
    return read(path, overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        (" 8 ", 8),
        ("-8", -8),
        ("3e-4", 3e-4),
        ("True", True),
        ("None", None),
        ("2*48", 96),
        ("1_000", 1000),
        ("2d", "2d"),
        ("2.5d", "2.5d"),
        ("2.5", 2.5),
        ("bf16", "bf16"),
        ("true", "true"),
        ("/data/a.txt", "/data/a.txt"),
        ("./my data/a-b.txt", "./my data/a-b.txt"),
        ("~/x", "~/x"),
        ("C:\\x", "C:\\x"),
        ("runs-1", "runs-1"),
        ("3#b", "3#b"),
        ("1;2", "1;2"),
        ("a=b", "a=b"),
        ("08", "08"),
        ("lambda", "lambda"),
        ("'2d'", "2d"),
        ('"a b"', "a b"),
        ("''", ""),
        ("'2'", "2"),
        ("(0.9, 0.95)", (0.9, 0.95)),
        ("[1, 'a']", [1, "a"]),
        ("dict(lr=2 * 1e-3, betas=(0.9, 0.99))", {"lr": 2e-3, "betas": (0.9, 0.99)}),
        ("{'a': None}", {"a": None}),
        ("max(2, 3)", 3),
    ],
)
def test_override_values_are_typed(tmp_path: Path, text: str, value: object) -> None:
    document = read_config(tmp_path, f"NEW={text}")
    assert repr(document.values["NEW"]) == repr(value)
    assert document.origins["NEW",] == Origin("command line", 0, 0)
    assert str(document.origins["NEW",]) == "command line"
    assert document.overridden == {("NEW",)}


def test_overridden_name_has_its_new_value_in_the_file(tmp_path: Path) -> None:
    document = read_config(tmp_path, "TENSOR_PARALLEL=4", "PIPELINE=1")
    assert document.values["MODE"] == "2d"
    assert document.values["parallel"] == {"pipeline": 1, "tensor": {"size": 4, "mode": "2d"}}
    assert str(document.origins["TENSOR_PARALLEL",]) == "command line"
    assert document.origins["parallel", "tensor", "size"].line == 9
    assert document.overridden == {("TENSOR_PARALLEL",), ("PIPELINE",)}


def test_overridden_expression_is_not_evaluated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.py:4: int\('not a number'\): "):
        read_config(tmp_path, "TENSOR_PARALLEL=3")
    assert read_config(tmp_path, "TENSOR_PARALLEL=3", "DEPTH=1").values["DEPTH"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "X = 1\nX += 5\n",
        "X, Y = 1, 2\n",
        "[Y, (X, Z)] = 1, (2, 3)\n",
        "X = Y = 1\n",
        "from foreign import X\n",
        "import X\n",
        "X: int = 1\nif X == 1:\n    X = 2\n",
        "Y = 1\n",
        "Y = X\n",
    ],
)
def test_override_replaces_every_kind_of_binding(tmp_path: Path, text: str) -> None:
    document = read_config(tmp_path, "X=7", text=text)
    assert document.values["X"] == 7
    assert "X" not in document.imported


def test_items_of_an_overridden_dict_are_not_assigned(tmp_path: Path) -> None:
    text = "model = dict(n=1)\nmodel['n'] = 2\nmodel['m'] += 3\nx, model['n'] = 1, 2\n"
    document = read_config(tmp_path, "model=dict(n=9)", text=text)
    assert document.values["model"] == {"n": 9}
    assert str(document.origins["model", "n"]) == "command line"


def test_dotted_overrides_are_applied_after_the_file(tmp_path: Path) -> None:
    text = CONFIG + "warm = optimizer['lr'] * 2\nsame = optimizer\n"
    document = read_config(tmp_path, "optimizer.lr=3", "zero.stage=3", "a.b.c=1", text=text)
    assert document.values["optimizer"] == {"type": "adam", "lr": 3}
    assert document.values["same"] == {"type": "adam", "lr": 1e-3}
    assert document.values["warm"] == 2e-3
    assert document.values["zero"] == {"stage": 3}
    assert document.values["a"] == {"b": {"c": 1}}
    assert document.origins["optimizer",].line == 10
    assert document.origins["optimizer", "type"].line == 10
    for path in [("optimizer", "lr"), ("zero", "stage"), ("zero",), ("a",), ("a", "b", "c")]:
        assert document.origins[path].file == "command line"
    assert document.overridden == {("optimizer", "lr"), ("zero", "stage"), ("a", "b", "c")}


def test_last_override_wins_and_dotted_ones_change_overridden_names(tmp_path: Path) -> None:
    document = read_config(tmp_path, "zero.stage=1", "zero=dict(offload='cpu')", "zero.stage=2")
    assert document.values["zero"] == {"offload": "cpu", "stage": 2}


def test_override_replaces_a_name_in_the_inherited_file(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("WIDTH = 2\nHEADS = WIDTH * 2\nfrom titans import gpt\n")
    text = "from .base import *\nfrom .base import WIDTH as same\nTOTAL = HEADS + WIDTH\n"
    document = read_config(tmp_path, "WIDTH=10", text=text)
    assert document.values == {
        "WIDTH": 10,
        "same": 10,
        "HEADS": 20,
        "TOTAL": 30,
        "gpt": Symbol("titans.gpt"),
    }
    assert str(document.origins["WIDTH",]) == "command line"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "BATCH_SIZE",
            "BATCH_SIZE: must have the form KEY=VALUE, such as BATCH_SIZE=8 or optimizer.lr=3e-4",
        ),
        (
            "--lr=3",
            "--lr=3: must have the form KEY=VALUE, such as BATCH_SIZE=8 or optimizer.lr=3e-4",
        ),
        ("=3", "=3: must have the form KEY=VALUE, such as BATCH_SIZE=8 or optimizer.lr=3e-4"),
        (
            "a..b=3",
            "a..b=3: must have the form KEY=VALUE, such as BATCH_SIZE=8 or optimizer.lr=3e-4",
        ),
        (
            "a.class=3",
            "a.class=3: must have the form KEY=VALUE, such as BATCH_SIZE=8 or optimizer.lr=3e-4",
        ),
        (
            "__name__=3",
            "__name__=3: must have the form KEY=VALUE, such as BATCH_SIZE=8 or optimizer.lr=3e-4",
        ),
        ("lr=", "lr=: has no value; '' is the empty string"),
        ("lr=1/0", "lr=1/0: division by zero"),
        ("n=9**9**9", "n=9**9**9: an integer of more than 1024 bits"),
        (
            "sizes=[1d, 2d]",
            "sizes=[1d, 2d]: syntax error: invalid decimal literal; "
            "a string with such characters needs quotes",
        ),
        ("o=dict(type=Adam)", "o=dict(type=Adam): Adam is not defined; a string needs quotes"),
        ("x=(1,2);(3)", "x=(1,2);(3): is not a single value"),
        (
            "a\nb=1",
            "'a\\nb=1': must have the form KEY=VALUE, such as BATCH_SIZE=8 or optimizer.lr=3e-4",
        ),
        ("x=\udcff", "'x=\\udcff': is not UTF-8 (byte 0xff)"),
        ("PIPELINE.x=1", "PIPELINE.x: PIPELINE is 2, not a dict"),
        ("optimizer.lr.x=1", "optimizer.lr.x: optimizer.lr is 0.001, not a dict"),
        ("gpt2_small.x=1", "gpt2_small.x: gpt2_small is titans.model.gpt.gpt2_small, not a dict"),
    ],
)
def test_malformed_override_is_rejected_with_its_message(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path, override)
    assert str(caught.value) == f"command line: {message}"


def test_code_in_an_override_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a call of __import__ is not allowed in a config"):
        read_config(tmp_path, "x=__import__('os').system('touch pwned')")


def test_problems_of_overrides_and_file_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path, "lr=", "x", text="a = 1 / 0\n")
    assert [problem.line for problem in caught.value.problems] == [1, 0, 0]
