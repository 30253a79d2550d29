"""Every bad config is rejected with its exact message, quickly, and executes nothing."""

import time
from pathlib import Path

import pytest

from engine.config.reader import read
from engine.errors import ConfigError
from tests.support.audit import watched

FOLDER = Path(__file__).parents[2] / "bad_configs" / "reader"
BAD = sorted(path.stem for path in FOLDER.glob("*.txt"))


def refusal_of(path: str) -> str:
    """What the reader says of ``path``; it may neither run anything nor take long: a thousandth
    of the limit is usual."""
    with watched() as happened:
        start = time.thread_time()
        with pytest.raises(ConfigError) as caught:
            read(path)
        taken = time.thread_time() - start
    assert happened == []
    assert taken < 10
    return str(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_bad_config_is_rejected_with_its_message(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)
    before = sorted(FOLDER.iterdir())
    assert refusal_of(f"{name}.py") == (FOLDER / f"{name}.txt").read_text().rstrip("\n")
    assert sorted(FOLDER.iterdir()) == before


def test_base_config_of_bad_configs_is_legal() -> None:
    legal = {path.stem for path in FOLDER.glob("*.py")} - set(BAD)
    assert legal == {"sizes"}  # which the bad ones inherit from
    assert read(FOLDER / "sizes.py").values == {"BATCH_SIZE": 8}
    assert len(BAD) > 40


def refused(folder: Path, text: str) -> str:
    path = folder / "bad.py"
    path.write_text(text)
    return refusal_of(str(path)).replace(str(path), "bad.py")


def test_string_of_100_megabytes_is_rejected(tmp_path: Path) -> None:
    message = refused(tmp_path, f"x = '{'a' * 10**8}'")
    assert message == "bad.py: longer than 32 KiB, the limit of a config"


@pytest.mark.parametrize(
    ("name", "other"),
    [("ds.json", "JSON"), ("gpt.yaml", "YAML"), ("gpt.yml", "YAML"), ("llama.toml", "TOML")],
)
def test_config_of_another_program_is_rejected_with_its_format(
    tmp_path: Path, name: str, other: str
) -> None:
    path = tmp_path / name
    path.write_text("BATCH_SIZE: 8\n")  # which Python would take for an annotation
    assert refusal_of(str(path)) == (
        f"{path}: is {other}, but a config is Python: lines such as BATCH_SIZE = 8 and "
        "optimizer = dict(lr=3e-4); cuboid settings lists all settings"
    )


@pytest.mark.parametrize(
    "text",
    [
        "(" * 30_000,
        "x = " + "[" * 150 + "]" * 150,
        "x = " + "-" * 30_000 + "1",
        "x = " + "not " * 8_000 + "1",
        "x = " + "2**" * 10_000 + "1",
        "x = " + "1+" * 150 + "1",
        "x = " + "1+" * 15_000 + "1",
        "x = a" + ".a" * 15_000,
        "x = a" + "()" * 15_000,
        "x = a" + "[0]" * 10_000,
        "x = " + "lambda: " * 4_000 + "1",
        "x = " + "1 if 0 else " * 2_000 + "1",
        "x = " + "dict(a=" * 120 + "1" + ")" * 120,
        "x = " + "{1: " * 150 + "1" + "}" * 150,
        "".join(f"{' ' * depth}if 1:\n" for depth in range(120)) + " " * 120 + "x = 1",
    ],
    ids=range(15),
)
def test_deep_nesting_is_rejected(tmp_path: Path, text: str) -> None:
    assert "nested" in refused(tmp_path, text) or "indentation" in refused(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "x = f'" + "{1}" * 10_000 + "'\n" + "y + 1\n" * 100,  # quadratic for Python 3.11's parser
        "a = [0] * 19_000\n" + "b = a == a\n" * 2_500,
        "a = [0] * 19_000\n" + "b = a + a\n" * 3_000,
        "a = 'x' * 65_000\n" + "b = f'{a}{a}{a}'\n" * 3_000,
        "a = 'x' * 65_000\nb = '{a}'\n" + "c = f'" + "{a}" * 10_000 + "'\n",
        "x = dict(" + ", ".join(f"a{i}=NAME_{i}" for i in range(1_500)) + ")\n",
        "\n".join(f"NAME_{i} = {i}" for i in range(1_500)) + "\nx = NOMA\n" * 100,
        "x = {" + ", ".join(f"{i * (2**61 - 1)}: 0" for i in range(1_200)) + "}\n",
        "x = 1\n" * 5_000 + "y = 1 / 0\n",
        "x, " * 10_000 + "y = 3",
        "x = 0x" + "f" * 30_000,
        "x = " + "9" * 30_000,
        "x = int('" + "9" * 30_000 + "')",
        "a = [[]] * 19_000\nb = sum(a, [])",
        "a = [1]\n" + "a = [a, a]\n" * 60,
        "a = 'ab'\n" + "a += a\n" * 60,
        "a = 3\n" + "a *= a\n" * 60,
        "a = [1]\n" + "a += a\n" * 60,
        "x = 1 << 1023 << 1023",
        "import os\na = ['a'] * 19_000\n" + "b = os.path.join(*a)\n" * 2_000,
        "import os\na = 'a/../' * 13_000\n" + "b = os.path.abspath(a)\n" * 2_000,
        "import os\na = ['b' * 60_000] * 10_000\nb = os.path.join(*a)\n",
        "x = 2.0 ** 1023 * 2",
    ],
    ids=range(23),
)
def test_exponential_growth_is_rejected(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text).startswith("bad.py")


def test_at_most_fifty_problems_are_reported(tmp_path: Path) -> None:
    message = refused(tmp_path, "x = 1 / 0\n" * 100)
    assert message.splitlines()[0] == "bad.py: only the first 50 problems are shown"
    assert len(message.splitlines()) == 51
