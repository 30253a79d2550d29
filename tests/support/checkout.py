"""A checkout of cuboid with stand-ins for Python and its commands, for tests of run.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("run.sh", "setup.py", *(file.name for file in ROOT.glob("requirements*.txt")))

# A stand-in for Python: logs its arguments, creates environments of stand-ins, and passes other
# calls to the real Python. A file "pip-fails" next to the log makes pip fail, "pip-waits" makes it
# wait until the file is removed.
PYTHON = f"""#!/bin/sh
printf '%s\\n' "$*" | tr '\\n' ' ' >>"$LOG"
echo >>"$LOG"
case "$*" in
    *'metadata.version("torch")'*) echo "$TORCH 3.11" ;;
    *missing_requirements.py*) echo "$LACKS" ;;
    '-m venv '*) cp -R "${{0%/bin/*}}" "$3" ;;
    '-m pip '*)
        echo installed
        while [ -e "$LOG-pip-waits" ]; do sleep 0.05; done
        [ ! -e "$LOG-pip-fails" ]
        ;;
    *) exec '{sys.executable}' "$@" ;;
esac
"""
COMMAND = """#!/bin/sh
echo "${0##*/}" "$@"
"""


class Checkout:
    """A checkout in a folder with a space in its name, and an environment of stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.root, self.active, self.log = folder / "a checkout", folder / "active", folder / "log"
        (self.root / "launch" / "commands").mkdir(parents=True)
        for name in FILES:
            shutil.copy(ROOT / name, self.root)
        for name in ("__init__", "train", "validate"):
            (self.root / "launch" / "commands" / f"{name}.py").touch()
        (self.active / "bin").mkdir(parents=True)
        for name in ("python", "cuboid", "torchrun"):
            file = self.active / "bin" / name
            file.write_text(PYTHON if name == "python" else COMMAND)
            file.chmod(0o755)

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        python = str(self.active / "bin" / "python")
        ours = {"LOG": str(self.log), "TORCH": "", "LACKS": "", "PYTHON": python}
        return subprocess.Popen(
            ["sh", self.root / "run.sh", *arguments],
            cwd=self.active,
            env={"PATH": os.environ["PATH"], "HOME": str(self.active), **ours, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start_and_wait_in_pip(self, *arguments: str) -> subprocess.Popen[str]:
        """Start run.sh and wait until pip runs, which it does until ``pip-waits`` is removed."""
        Path(f"{self.log}-pip-waits").touch()
        process = self.start(*arguments)
        while not self.log.exists() or "-m pip" not in self.log.read_text():
            time.sleep(0.01)
        return process

    def run(self, *arguments: str, **environ: str) -> tuple[int, str, str]:
        """Run run.sh and return the exit code, stdout and stderr."""
        process = self.start(*arguments, **environ)
        out, err = process.communicate()
        return process.returncode, out, err

    def calls(self, text: str) -> list[str]:
        """Return the calls of Python that contain ``text``, since the last call of this method."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line for line in lines if text in line]
