"""./run.sh setup nvme with stand-ins for the compiler and Python."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.test_run_sh import House

# Finds the headers whose names are in HEADERS, and a library beside itself if URING is set.
COMPILER = """#!/bin/sh
case "$1" in
    -print-file-name=*) [ -z "$URING" ] && echo liburing.a || echo "${0%/*}/liburing.a" ;;
    *) read -r line; case " $HEADERS " in *" ${line#*<} "*) ;; *) exit 1 ;; esac ;;
esac
"""
PYTHON = """#!/bin/sh
case "$*" in
    *tensornvme._C*) [ -e "$LOG-built" ]; exit ;;
    *requirements-nvme.txt*)
        echo "$HOME $LIBRARY_PATH" >"$LOG-surroundings"
        echo >"$HOME/.bashrc"
        [ -e "$LOG-useless" ] || : >"$LOG-built"
        ;;
esac
exec "$0.house" "$@"
"""
FOUND = {"HEADERS": "libaio.h> liburing.h>", "URING": "1"}


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A house with an environment, a compiler and what it takes to build."""
    made = House(tmp_path)
    assert made.run("setup")[0] == 0
    python = made.root / ".venv" / "bin" / "python"
    python.rename(f"{python}.house")
    python.write_text(PYTHON)
    python.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "liburing.a").touch()
    for name in ("c++", "cmake", "make"):
        (tools / name).write_text(COMPILER if name == "c++" else "#!/bin/sh\n")
        (tools / name).chmod(0o755)
    made.calls("")
    return made


def set_up(house: House, **environ: str) -> tuple[int, str, str]:
    tools = f"{house.root.parent / 'tools'}:{os.environ['PATH']}"
    return house.run("setup", "nvme", PATH=tools, **environ)


def test_it_is_built_once_and_the_home_folder_stays_as_it_is(house: House) -> None:
    code, out, err = set_up(house, **FOUND)
    assert (code, out) == (0, "")
    assert "building TensorNVMe" in err
    (pip,) = house.calls("-m pip")
    assert "--no-deps --no-build-isolation" in pip
    home, libraries = Path(f"{house.log}-surroundings").read_text().split()
    assert libraries == str(house.root.parent / "tools")
    assert not Path(home).exists()
    assert not (house.active / ".bashrc").exists()

    code, _, err = set_up(house)
    assert (code, "is there" in err) == (0, True)
    assert house.calls("-m pip") == []


@pytest.mark.parametrize(
    ("environ", "packages"),
    [
        ({"HEADERS": "", "URING": ""}, "libaio-dev liburing-dev"),
        ({"HEADERS": "libaio.h>", "URING": "1"}, "liburing-dev"),
        ({"HEADERS": "libaio.h> liburing.h>", "URING": ""}, "liburing-dev"),
        ({"HEADERS": "liburing.h>", "URING": "1"}, "libaio-dev"),
    ],
)
def test_what_is_missing_is_named_with_the_command_and_nothing_is_installed(
    house: House, environ: dict[str, str], packages: str
) -> None:
    code, out, err = set_up(house, **environ)
    assert (code, out) == (2, "")
    assert f": sudo apt-get install {packages} (or" in err
    assert len(err.splitlines()) == 1
    assert house.calls("-m pip") == []


def test_a_build_that_fails_or_is_of_no_use_fails(house: House) -> None:
    Path(f"{house.log}-useless").touch()
    code, _, err = set_up(house, **FOUND)
    assert (code, "cannot be imported" in err) == (1, True)
    Path(f"{house.log}-pip-fails").touch()
    code, _, err = set_up(house, **FOUND)
    assert (code, "set-up failed" in err) == (1, True)
    assert not Path(Path(f"{house.log}-surroundings").read_text().split()[0]).exists()
