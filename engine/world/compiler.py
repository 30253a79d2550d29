"""The C++ compiler that torch.compile needs on a CPU: its absence and its failures. No torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping

from engine.errors import RunError
from engine.plan import Plan


def missing_compiler(plan: Plan, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a message if the plan needs a C++ compiler that does not run.

    The tested compiler is torch inductor's (torch/_inductor/config.py, cpp.cxx), and the test is
    the command that inductor runs.
    """
    default = "clang++" if sys.platform == "darwin" else "g++"
    name = environ.get("CXX", default)
    if not plan.settings.compile or _runs(name):
        return
    command = f"{name}, which CXX names," if "CXX" in environ else name
    yield (
        f"{plan.cite('compile')} needs a C++ compiler, and {command} does not run here; install "
        "one (Debian, Ubuntu: apt-get install g++), name one by CXX, or set compile=False"
    )


def compiler_failure(error: BaseException) -> RunError | None:
    """Translate ``error`` into one line with the reason if the C++ compiler failed; return None for
    any other error."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ == "CppCompileError":
            output = [line.strip() for line in str(getattr(cause, "output", "")).splitlines()]
            lines = [line for line in output if line]
            reason = next((line for line in lines if "error" in line), (lines or [""])[0])
            command = getattr(cause, "cmd", None) or ["the C++ compiler"]
            return RunError(
                f"compile=True: {command[0]} failed ({reason}); compile=False runs without it"
            )
        cause = getattr(cause, "inner_exception", None) or cause.__cause__
    return None


def _runs(name: str) -> bool:
    try:
        subprocess.run([name, "--version"], check=True, capture_output=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    return True
