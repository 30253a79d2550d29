"""./run.sh setup nvme with stand-ins for the compiler and Python."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.checkout import Checkout

# A stand-in for the compiler: has the headers in HEADERS, and a library next to it if URING is set.
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
exec "$0.checkout" "$@"
"""
FOUND = {"HEADERS": "libaio.h> liburing.h>", "URING": "1"}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout with an environment, a compiler and the headers and libraries for the build."""
    made = Checkout(tmp_path)
    assert made.run("setup")[0] == 0
    python = made.root / ".venv" / "bin" / "python"
    python.rename(f"{python}.checkout")
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


def set_up(checkout: Checkout, **environ: str) -> tuple[int, str, str]:
    tools = f"{checkout.root.parent / 'tools'}:{os.environ['PATH']}"
    return checkout.run("setup", "nvme", PATH=tools, **environ)


def test_tensornvme_is_built_once_and_the_home_folder_is_unchanged(checkout: Checkout) -> None:
    code, out, err = set_up(checkout, **FOUND)
    assert (code, out) == (0, "")
    assert "building TensorNVMe" in err
    (pip,) = checkout.calls("-m pip")
    assert "--no-deps --no-build-isolation" in pip
    home, libraries = Path(f"{checkout.log}-surroundings").read_text().split()
    assert libraries == str(checkout.root.parent / "tools")
    assert not Path(home).exists()
    assert not (checkout.active / ".bashrc").exists()

    code, _, err = set_up(checkout)
    assert (code, "already installed" in err) == (0, True)
    assert checkout.calls("-m pip") == []


@pytest.mark.parametrize(
    ("environ", "packages"),
    [
        ({"HEADERS": "", "URING": ""}, "libaio-dev liburing-dev"),
        ({"HEADERS": "libaio.h>", "URING": "1"}, "liburing-dev"),
        ({"HEADERS": "libaio.h> liburing.h>", "URING": ""}, "liburing-dev"),
        ({"HEADERS": "liburing.h>", "URING": "1"}, "libaio-dev"),
    ],
)
def test_missing_system_packages_are_named_with_the_command_and_nothing_is_installed(
    checkout: Checkout, environ: dict[str, str], packages: str
) -> None:
    code, out, err = set_up(checkout, **environ)
    assert (code, out) == (2, "")
    assert f"; sudo apt-get install {packages} (names differ" in err
    assert len(err.splitlines()) == 1
    assert checkout.calls("-m pip") == []


def test_failed_or_unusable_build_exits_with_1(checkout: Checkout) -> None:
    Path(f"{checkout.log}-useless").touch()
    code, _, err = set_up(checkout, **FOUND)
    assert (code, "cannot be imported" in err) == (1, True)
    Path(f"{checkout.log}-pip-fails").touch()
    code, _, err = set_up(checkout, **FOUND)
    assert (code, "set-up failed" in err) == (1, True)
    assert not Path(Path(f"{checkout.log}-surroundings").read_text().split()[0]).exists()
