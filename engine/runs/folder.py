"""The folder of a run: who may write into it, what lies where, and how the run ended.

RUN/config.py, statements.json, resolved.json, environment.json, tokenizer.json, initial.json,
log.jsonl, events.out.tfevents.* (TensorBoard's), checkpoints/, model.safetensors, status.json.
Rank 0 claims a folder and the other ranks are told its path.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from glob import escape
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from engine.disk import FULL, name_file_in_errors
from engine.errors import UserError

LOCK_SECONDS = 0.5
"""How long a folder that is in use is tried for: a command that looks at it may hold it briefly."""

RunStatus = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run; the last part of each is what the user sees."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.py"

    @property
    def resolved(self) -> Path:
        return self.path / "resolved.json"

    @property
    def statements(self) -> Path:
        """What the config stated, from which the run's plan is made again."""
        return self.path / "statements.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard's files are: here, so that it names the run as we do. Runs of earlier
        versions have them in a folder of their own, and go on there."""
        earlier = self.path / "tb"
        return earlier if earlier.is_dir() else self.path

    @property
    def has_curves(self) -> bool:
        """Whether there is anything for TensorBoard."""
        return any(self.tensorboard.glob("events.out.tfevents.*"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def initial(self) -> Path:
        """Which weights it began with, if not with random ones."""
        return self.path / "initial.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    def read_status(self) -> dict[str, Any]:
        """Read status.json, once it says how a run ended that was killed; empty where there is none
        or it is not ours."""
        status = self._read_status()
        if status.get("state") != "running":
            return status
        self.mark_if_killed()
        return self._read_status()

    def _read_status(self) -> dict[str, Any]:
        try:
            found = json.loads(self.status.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_status(self, state: RunStatus, *, step: int, message: str = "") -> None:
        """Say how the run stands after ``step`` steps; keeps who claimed the folder and when."""
        status = self._read_status() | {"state": state, "step": step, "message": message}
        status["ended"] = None if state == "running" else _now()
        text = json.dumps(status, indent=2) + "\n"
        try:
            write_atomically(self.status, text)
        except OSError as error:
            if error.errno not in FULL:
                raise
            # Where a full disk has no room for another file, this one has its own
            with name_file_in_errors(self.status), self.status.open("r+", encoding="utf-8") as file:
                file.write(text)
                file.truncate()

    def lock(self) -> AbstractContextManager[Any]:
        """Keep other jobs out of the folder until what this returns is left, or the process ends.
        File systems without locks let them in.

        Raises UserError where another job is in it, or it cannot be written.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        while (held := self._try_lock()) is None:
            if time.monotonic() > deadline:
                status = self._read_status()
                by = f"process {status.get('pid')} on {status.get('host')}"
                raise UserError(f"{self.path} is in use by {by}; it must end first")
            time.sleep(LOCK_SECONDS / 10)
        return held

    def _try_lock(self) -> AbstractContextManager[Any] | None:
        """Take the lock; None where another job has it. Raises UserError."""
        try:
            file = self.lock_file.open("a")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            file.close()
            return nullcontext()
        return file

    def mark_if_killed(self) -> None:
        """Record the end of a run that was killed before it could: its status is "running", and
        nobody holds its folder. A run that has not held it yet is starting. Nothing is written
        where that cannot be found out, or the folder cannot be written."""
        if self._read_status().get("state") != "running" or not self.lock_file.exists():
            return
        with suppress(UserError, OSError), self._try_lock() or nullcontext() as held:
            status = self._read_status()
            if held is not None and status.get("state") == "running":
                step = self._last_step() or status.get("step", 0)
                self.write_status("failed", step=step, message="killed before it could say why")

    def _last_step(self) -> int:
        try:
            return int(json.loads(self.log.read_text().splitlines()[-1])["step"])
        except (OSError, ValueError, IndexError, KeyError, TypeError):  # torn, perhaps
            return 0

    def reassign(self, run_id: str) -> None:
        """Make a folder that is held this run's own, so that its restarts find it."""
        now = {"state": "running", "message": "", "ended": None}
        status = self._read_status() | _owner(run_id) | now
        write_atomically(self.status, json.dumps(status, indent=2) + "\n")

    def record(
        self, *, config: str, resolved: Mapping[str, Any], statements: Mapping[str, Any]
    ) -> None:
        """Write the config file as it was given, what it stated and all that it resolved to."""
        write_atomically(self.config, config)
        write_atomically(self.resolved, json.dumps(resolved, indent=2) + "\n")
        write_atomically(self.statements, json.dumps(statements, indent=2) + "\n")


def claim_folder(
    name: str, run_id: str, *, output: Path | None = None, root: Path = Path("runs")
) -> RunFolder:
    """A folder for the run: ``output``, or by default ROOT/NAME-TIME.

    The same ``run_id`` gets the same folder again, so that a restarted job goes on in it.

    Raises UserError where ``output`` is in use by another run or cannot be made.
    """
    if output is not None:
        folder = RunFolder(output)
        if not _create(folder, run_id) and folder.read_status().get("run_id") != run_id:
            raise UserError(
                f"{output}: {_why_in_use(folder)}; give another --output or remove it first"
            )
        return folder
    for folder in _folders(root, f"{escape(name)}-*"):
        if folder.read_status().get("run_id") == run_id:
            return folder
    paths = map(RunFolder, _new_paths(root, name))
    return next(folder for folder in paths if _create(folder, run_id))


def list_runs(root: Path = Path("runs"), name: str | None = None) -> list[RunFolder]:
    """The folders NAME-TIME under ``root``, of all names by default, the newest first."""
    return [RunFolder(path) for _, _, path in sorted(_dated(root, name), reverse=True)]


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that a reader, or a crash, finds the old or the new whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with name_file_in_errors(path), draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _create(folder: RunFolder, run_id: str) -> bool:
    """Make the folder this run's own; False where it is in use. Of two at once one succeeds."""
    owner = {**_owner(run_id), "started": _now()}
    status = {**owner, "state": "running", "step": 0, "message": "", "ended": None}
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if any(folder.path.iterdir()):
            return False
        with folder.status.open("x", encoding="utf-8") as file:
            file.write(json.dumps(status, indent=2) + "\n")
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(f"{folder.path}: cannot be the run's folder: {error.strerror}") from None
    return True


def _dated(root: Path, name: str | None = None) -> Iterator[tuple[str, int, Path]]:
    """The time and the number in the names of runs, and their folders."""
    pattern = re.compile(rf"({re.escape(name) if name else '.*'})-(\d{{8}}-\d{{6}})(?:-(\d+))?")
    for folder in _folders(root, "*"):
        parts = pattern.fullmatch(folder.path.name)
        if parts is not None:
            yield parts[2], int(parts[3] or 1), folder.path


def _owner(run_id: str) -> dict[str, Any]:
    return {"run_id": run_id, "host": socket.gethostname(), "pid": os.getpid()}


def _why_in_use(folder: RunFolder) -> str:
    """What keeps a folder from being claimed."""
    if not folder.path.is_dir():
        return "is not a folder"
    status = folder.read_status()
    if "state" in status:
        run = f"holds a run ({status['state']} at step {status.get('step')})"
        return f"{run}; --resume {quote(str(folder.path))} continues it"
    return "is not empty"


def _folders(root: Path, pattern: str) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted(root.glob(pattern)) if path.is_dir()]


def _new_paths(root: Path, name: str) -> Iterator[Path]:
    """NAME-TIME, then NAME-TIME-2 ...: newer by their names than all runs there are, though the
    clock may have been set back."""
    now = f"{datetime.now():%Y%m%d-%H%M%S}"
    time, number = max([(now, 0), *((time, number) for time, number, _ in _dated(root))])
    while True:
        number += 1
        yield root / (f"{name}-{time}" + (f"-{number}" if number > 1 else ""))


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
