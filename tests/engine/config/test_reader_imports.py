"""Imports in a config: config files to inherit from, and external modules."""

import os
from pathlib import Path

import pytest

from engine.config.reader import read
from engine.config.values import Symbol
from engine.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make ``project/gpt_configs``, where the project has the marks of a repository."""
    folder = tmp_path / "project" / "gpt_configs"
    folder.mkdir(parents=True)
    (tmp_path / "project" / "setup.py").touch()
    monkeypatch.chdir(tmp_path / "project")
    return folder


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


BASE = """\
BATCH_SIZE = 8
_hidden = 64
WIDTH = _hidden * 2
model = dict(n_layer=4,
             n_embd=WIDTH)
"""


@pytest.mark.parametrize(
    "statement",
    [
        "from gpt_configs.base import *",
        "from .base import *",
        "from base import *",
        "from ..gpt_configs.base import *",
        "from gpt_configs.base import BATCH_SIZE, WIDTH, model",
        "from . import base\nBATCH_SIZE, WIDTH, model = base.BATCH_SIZE, base.WIDTH, base.model",
        "import base as b\nBATCH_SIZE = b.BATCH_SIZE\nWIDTH = b.WIDTH\nmodel = b.model",
        "import gpt_configs.base as b\nBATCH_SIZE = b.BATCH_SIZE\nWIDTH = b.WIDTH\nmodel = b.model",
        "from gpt_configs import base\nBATCH_SIZE = base.BATCH_SIZE\n"
        "from .base import WIDTH, model",
    ],
)
def test_config_inherits_from_another(folder: Path, statement: str) -> None:
    write(folder, base=BASE, child=f"{statement}\nmodel['n_layer'] = 2\nBATCH_SIZE *= 2\n")
    document = read("gpt_configs/child.py")
    assert document.values == {
        "BATCH_SIZE": 16,
        "WIDTH": 128,
        "model": {"n_layer": 2, "n_embd": 128},
    }
    origins = {path: str(origin) for path, origin in document.origins.items()}
    assert origins["model", "n_embd"] == "gpt_configs/base.py:5"
    lines = statement.count("\n") + 1
    assert origins["model", "n_layer"] == f"gpt_configs/child.py:{lines + 1}"
    assert origins["BATCH_SIZE",] == f"gpt_configs/child.py:{lines + 2}"
    assert "_hidden" in document.read_names
    assert document.imported == frozenset()


def test_external_names_are_inherited_as_symbols(folder: Path) -> None:
    write(
        folder, base="from torch.optim import Adam, SGD\nAdam = 3\n", child="from .base import *\n"
    )
    document = read(folder / "child.py")
    assert document.values == {"Adam": 3, "SGD": Symbol("torch.optim.SGD")}
    assert document.imported == {"SGD"}


def test_file_in_another_folder_of_the_project_is_found(folder: Path) -> None:
    common = folder.parent / "common" / "sizes"
    common.mkdir(parents=True)
    write(common, small="N = 1\n")
    write(folder, child="from common.sizes.small import N\n")
    assert read(folder / "child.py").values == {"N": 1}


def test_folders_above_the_project_are_not_searched(folder: Path) -> None:
    write(folder.parent.parent, base="N = 1\n")
    write(folder, child="from base import N\n")
    assert read(folder / "child.py").values == {"N": Symbol("base.N")}


def test_folder_is_imported_as_a_package(folder: Path) -> None:
    write(folder, __init__="N = 1\n", child="from gpt_configs import N\nfrom . import *\n")
    assert read(folder / "child.py").values == {"N": 1}


def test_file_imported_twice_is_read_once(folder: Path) -> None:
    write(
        folder,
        base="shared = dict(n=1)\n",
        left="from .base import shared\nshared['left'] = 1\n",
        right="from .base import shared\nshared['right'] = 1\n",
        child="from .left import *\nfrom .right import *\n",
    )
    assert read(folder / "child.py").values == {"shared": {"n": 1, "left": 1, "right": 1}}


@pytest.mark.parametrize("name", ["json", "torch", "model", "os", "titans"])
def test_files_do_not_hide_packages_of_the_same_name(folder: Path, name: str) -> None:
    text = f"import {name}\nfrom {name} import thing\nBATCH_SIZE = 8\n"
    write(folder, **{name: text, "child": f"from .{name} import *\n{text}"})
    for file in (name, "child"):  # torch.py does not import itself, and child.py not torch.py
        values = read(folder / f"{file}.py").values
        assert values[name] == Symbol(name)
        assert values["thing"] == Symbol(f"{name}.thing")


def test_folder_of_data_is_not_a_package(folder: Path) -> None:
    (folder / "datasets").mkdir()
    (folder / "datasets" / "a.txt").touch()
    write(folder, child="from datasets.text import Text\n")
    assert read(folder / "child.py").values == {"Text": Symbol("datasets.text.Text")}


def message_of(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("from gpt_configs.bsae import *", "no config file gpt_configs/bsae.py in project"),
        ("from gpt_configs import bsae", "no config file bsae.py in gpt_configs"),
        ("from .bsae import X", "no config file bsae.py in gpt_configs"),
        ("from ..bsae import X", "no config file bsae.py in project"),
        ("from . import bsae", "no config file bsae.py in gpt_configs"),
        (
            "import gpt_configs.base",
            "gpt_configs.base has no name here; write 'from gpt_configs import base'",
        ),
        ("import gpt_configs", "gpt_configs is a folder; import a config file in it"),
        ("from bsae import *", "bsae is not a config file; import its names one by one"),
        ("from .base import NOPE", "gpt_configs/base.py does not define NOPE"),
        ("from .base import _hidden, NOPE", "gpt_configs/base.py does not define NOPE"),
    ],
)
def test_invalid_import_is_rejected_with_its_message(
    folder: Path, statement: str, message: str
) -> None:
    write(folder, base=BASE, child=f"{statement}\n")
    actual = message_of("gpt_configs/child.py")
    assert actual == f"gpt_configs/child.py:1: {message}"


def test_problems_of_inherited_files_are_reported_once_in_their_file(folder: Path) -> None:
    write(
        folder,
        base="A = 1 / 0\nB = lambda: 3\n",
        child="from .base import *\nfrom .base import A as C\nD = A + B + C + UNHEARD\n",
    )
    lines = message_of("gpt_configs/child.py").splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "gpt_configs/base.py:1",
        "gpt_configs/base.py:2:5",
        "gpt_configs/child.py:3",
    ]
    assert "UNHEARD is not defined" in lines[-1]


def test_names_are_not_reported_as_undefined_after_a_failed_star_import(folder: Path) -> None:
    write(
        folder,
        base="x = (\n",
        middle="from .base import *\n",
        child="from .middle import *\nA = ANYTHING\nB = 1 / 0\n",
    )
    assert message_of("gpt_configs/child.py").splitlines() == [
        "gpt_configs/base.py:1:5: syntax error: '(' was never closed",
        "gpt_configs/child.py:3: 1 / 0: division by zero",
    ]


def test_circular_imports_are_rejected_with_the_cycle(folder: Path) -> None:
    write(folder, a="from .b import *\n", b="from .c import *\n", c="from .b import *\n")
    assert message_of("gpt_configs/a.py") == (
        "gpt_configs/c.py:1: circular import: "
        "gpt_configs/b.py -> gpt_configs/c.py -> gpt_configs/b.py"
    )


def test_long_chains_and_many_files_are_rejected(folder: Path) -> None:
    for index in range(40):
        write(folder, **{f"deep_{index}": f"from .deep_{index + 1} import *\n"})
    assert "imports more than 16 deep" in message_of("gpt_configs/deep_0.py")
    for index in range(100):
        write(folder, **{f"flat_{index}": f"N_{index} = 1\n"})
    write(folder, wide="".join(f"from .flat_{index} import *\n" for index in range(100)))
    assert "more than 64 files" in message_of("gpt_configs/wide.py")
    for name in ("big_1", "big_2", "big_3"):
        write(folder, **{name: "# " + "x" * 30_000})
    write(folder, big="from .big_1 import *\nfrom .big_2 import *\nfrom .big_3 import *\n")
    assert "longer than 64 KiB" in message_of("gpt_configs/big.py")


def test_folder_without_permission_is_rejected(folder: Path) -> None:
    write(folder, child=f"import {'a' * 5000}\nfrom .{'b' * 5000} import *\n")
    actual = message_of("gpt_configs/child.py")
    assert actual.startswith("gpt_configs/child.py:2: no config file bbb")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "loop", "null"])
def test_path_that_is_not_a_file_is_rejected(folder: Path, kind: str) -> None:
    path = folder / kind
    expected = {
        "missing": "does not exist",
        "folder": "is a folder; a file is needed",
        "pipe": "is a named pipe; a file is needed",
    }
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "loop":
        path.symlink_to(path)
    name = "a\0b" if kind == "null" else str(path)
    message = message_of(name)
    assert message.startswith(f"{name}: ")
    assert message.count("\n") == 0
    assert expected.get(kind, "") in message


def test_deleted_working_folder_is_reported(folder: Path) -> None:
    (folder / "gone").mkdir()
    os.chdir(folder / "gone")
    (folder / "gone").rmdir()
    assert "cannot be read" in message_of("x.py")
