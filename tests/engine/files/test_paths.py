"""Paths are expanded in every setting; the kind of file is checked without opening it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest

from engine.config.schema import all_settings, path_settings
from engine.data.input_files.data_file import DataFile
from engine.errors import ConfigError, UserError
from engine.files import paths
from engine.plan import make_plan

CONFIG = "BATCH_SIZE = 8\nSEQ_LEN = 8\nMAX_STEPS = 1\nmodel = dict(n_layer=1, n_head=1, n_embd=8)\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gpt.py"
    path.write_text(CONFIG)
    return path


def kinds_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield files of every kind but regular ones, and the kind of each."""
    os.mkfifo(folder / "pipe")
    yield folder / "pipe", "a named pipe"
    with socket.socket(socket.AF_UNIX) as unix:
        here = Path.cwd()
        os.chdir(folder)  # an address is at most 108 bytes
        unix.bind("socket")
        os.chdir(here)
    yield folder / "socket", "a socket"
    (folder / "link").symlink_to("nowhere")
    yield folder / "link", "a broken link"
    (folder / "folder").mkdir()
    yield folder / "folder", "a folder"
    yield Path("/dev/zero"), "a device"


def test_other_kinds_of_files_are_rejected_by_name(
    tmp_path_factory: pytest.TempPathFactory, config: Path
) -> None:
    for path, kind in kinds_in(tmp_path_factory.mktemp("k")):  # messages shorten long paths
        with pytest.raises(UserError) as refusal:
            DataFile(str(path))
        assert str(refusal.value) == f"data.path={str(path)!r} is {kind}; a file is needed"
        with pytest.raises(ConfigError) as error:
            make_plan(path, gpus=None, environ={})
        assert str(error.value) == f"{path}: is {kind}; a file is needed"
        for name, mark in path_settings().items():
            (*_, warning) = ["", *plan_warnings(config, f"{name}={path}")]
            wrong = bool(mark.exists) and kind not in mark.exists
            assert (f"={str(path)!r} is {kind}; " in warning) == wrong


def plan_warnings(config: Path, *overrides: str) -> list[str]:
    return [
        line
        for line in make_plan(config, gpus=None, overrides=overrides, environ={}).warnings
        if re.match(r"command line: [\w.]+='", line)
    ]


def test_missing_or_unreadable_paths_are_reported(tmp_path: Path) -> None:
    there = tmp_path / "closed" / "a.txt"
    there.parent.mkdir()
    there.write_text("text")
    for path, mode in ((there, 0o644), (there.parent, 0o755)):
        path.chmod(0)
        try:
            with as_nobody(tmp_path):
                found = paths.problem_at(there, paths.FILE)
        finally:
            path.chmod(mode)
        assert found == "cannot be read: Permission denied"
    assert paths.problem_at(there, paths.FILE) is None
    assert paths.problem_at(there / "x", paths.FILE) == "does not exist"
    assert paths.problem_at(Path("x" * 300), paths.FILE) == "cannot be read: File name too long"
    assert paths.problem_at(Path("nowhere"), paths.FILE) == f"does not exist in {Path.cwd()}"


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Drop root's permission to read everything, if the tests run as root."""
    with contextlib.ExitStack() as undone:
        if os.geteuid() == 0:
            for path in (folder, *folder.parents):
                if (mode := path.stat().st_mode) & 1 == 0:
                    path.chmod(0o755)
                    undone.callback(path.chmod, mode)
            try:
                os.seteuid(65534)
            except OSError as error:  # a user namespace may have no other user
                pytest.skip(f"root cannot become another user here: {error.strerror}")
            undone.callback(os.seteuid, 0)
        yield


@pytest.mark.parametrize("name", list(path_settings()))
def test_every_path_setting_expands_the_home_folder(
    config: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    overrides = [f"{name}='~/deep/x'"]
    settings = make_plan(config, gpus=None, overrides=overrides, environ={}).settings
    assert attrgetter(name)(settings) == "/home/ada/deep/x"


@pytest.mark.parametrize("name", list(path_settings()))
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("''", "='' is empty; a path is needed"),
        ("'a\\0b'", "='a\\x00b' contains a null byte, which no path can"),
        ("~nobody-here/x", "='~nobody-here/x' names the home folder of a user who does not exist"),
        ("a\udcffb", "a\\udcffb': is not UTF-8 (byte 0xff)"),
        ("7", "path or None"),
    ],
)
def test_impossible_paths_are_rejected_in_one_line(
    config: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make_plan(config, gpus=None, overrides=[f"{name}={text}"], environ={})
    (line,) = str(error.value).splitlines()
    assert line.startswith("command line: ")
    assert name in line
    assert line.endswith(message)


def test_data_path_of_the_environment_is_checked(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"^environment: DATA='\\udcff' is not UTF-8 \(byte 0xff"):
        make_plan(config, gpus=None, environ={"DATA": "\udcff"})


def test_settings_that_name_files_are_paths() -> None:
    """A new path setting cannot be declared as plain text."""
    spoken = {
        name
        for name, field in all_settings().items()
        if re.search(r"(^|[._])(path|dir|file|folder|cache|codebook)s?$", name)
        or re.match(r"(file|folder|path)\b", field.description or "")
    }
    assert spoken == {*path_settings()}
    assert len(spoken) >= 4
