"""The folder of a run: its files, its lock and its status.

RUN/config.py, statements.json, resolved.json, environment.json, tokenizer.json, initial.json,
log.jsonl, statistics.jsonl, events.out.tfevents.* (TensorBoard's), checkpoints/, model.safetensors,
status.json. Rank 0 claims the folder and sends its path to the other ranks.
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

from engine.data.tokenizer import FILE_NAME as TOKENIZER
from engine.errors import UserError
from engine.files.atomic_write import write_atomically
from engine.files.full_disk import FULL, name_file_in_errors

NAME_SEPARATOR = "--"
"""Separates the name of a config from the settings that log.name='auto' appends."""
LOCK_SECONDS = 0.5
"""How long to wait for the lock of a folder: a command that reads it may lock it briefly."""

RunStatus = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run. Its properties are the paths of its files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.py"

    @property
    def resolved(self) -> Path:
        return self.path / "resolved.json"

    @property
    def statements(self) -> Path:
        """The settings that the user stated; a restart makes the plan from them."""
        return self.path / "statements.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's files: the run's folder, so that TensorBoard shows the run's
        name. Runs that an older version started use the subfolder tb."""
        subfolder = self.path / "tb"
        return subfolder if subfolder.is_dir() else self.path

    @property
    def has_curves(self) -> bool:
        """True if TensorBoard's files exist."""
        return any(self.tensorboard.glob("events.out.tfevents.*"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def tokenizer(self) -> Path:
        return self.path / TOKENIZER

    @property
    def initial(self) -> Path:
        """The record of the initial weights, if they were not random."""
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
        """Read status.json, after marking a killed run as failed. Return an empty dict if the file
        is missing or not a status."""
        status = self._read_status()
        if status.get("state") != "running":
            return status
        self.mark_if_killed()
        return self._read_status()

    def _read_status(self) -> dict[str, Any]:
        try:
            status = json.loads(self.status.read_text())
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def write_status(self, state: RunStatus, *, step: int, message: str = "") -> None:
        """Write the state of the run after ``step`` steps; the other fields are unchanged."""
        status = self._read_status() | {"state": state, "step": step, "message": message}
        status["ended"] = None if state == "running" else _now()
        text = json.dumps(status, indent=2) + "\n"
        try:
            write_atomically(self.status, text)
        except OSError as error:
            if error.errno not in FULL:
                raise
            # A full disk has no space for a new file, but this one can be overwritten
            with name_file_in_errors(self.status), self.status.open("r+", encoding="utf-8") as file:
                file.write(text)
                file.truncate()

    def lock(self) -> AbstractContextManager[Any]:
        """Lock the folder against other jobs and return a context manager that unlocks it. The end
        of the process unlocks it, too. On a file system without locks nothing is locked.

        Raises UserError if another job has the lock, or the folder is not writable.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        while (lock := self._try_lock()) is None:
            if time.monotonic() > deadline:
                status = self._read_status()
                by = f"process {status.get('pid')} on {status.get('host')}"
                raise UserError(f"{self.path} is in use by {by}; wait until it ends, or stop it")
            time.sleep(LOCK_SECONDS / 10)
        return lock

    def _try_lock(self) -> AbstractContextManager[Any] | None:
        """Lock the folder; return None if another job has the lock. Raises UserError."""
        try:
            file = self.lock_file.open("a")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; choose another --output"
            ) from None
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
        """Write the state "failed" if status.json has "running" but no process has the lock: the
        run was killed. A folder without a lock file is skipped, because its run is starting. Does
        nothing if the lock cannot be checked or the status not written."""
        if self._read_status().get("state") != "running" or not self.lock_file.exists():
            return
        with suppress(UserError, OSError), self._try_lock() or nullcontext() as lock:
            status = self._read_status()
            if lock is not None and status.get("state") == "running":
                step = self._last_step() or status.get("step", 0)
                self.write_status(
                    "failed", step=step, message="process was killed (no error recorded)"
                )

    def _last_step(self) -> int:
        """Read the number of the last step in log.jsonl; 0 if it cannot be read."""
        try:
            return int(json.loads(self.log.read_text().splitlines()[-1])["step"])
        except (OSError, ValueError, IndexError, KeyError, TypeError):  # a crash may truncate it
            return 0

    def reassign(self, run_id: str) -> None:
        """Write ``run_id``, the id of a launch that resumes in this folder, to status.json, so that
        restarts of the launch find the folder. The caller must have the lock."""
        running = {"state": "running", "message": "", "ended": None}
        status = self._read_status() | _owner(run_id) | running
        write_atomically(self.status, json.dumps(status, indent=2) + "\n")

    def record(
        self, *, config: str, resolved: Mapping[str, Any], statements: Mapping[str, Any]
    ) -> None:
        """Write config.py, resolved.json and statements.json."""
        write_atomically(self.config, config)
        write_atomically(self.resolved, json.dumps(resolved, indent=2) + "\n")
        write_atomically(self.statements, json.dumps(statements, indent=2) + "\n")


def claim_folder(
    name: str, run_id: str, *, output: Path | None = None, root: Path = Path("runs")
) -> RunFolder:
    """Create the folder of a run: ``output``, or by default ROOT/NAME-TIME.

    If a folder of the same ``run_id`` exists, return that folder: a restarted job continues in it.

    Raises UserError if ``output`` belongs to another run or cannot be created.
    """
    if output is not None:
        folder = RunFolder(output)
        if not _create(folder, run_id) and folder.read_status().get("run_id") != run_id:
            raise UserError(
                f"{output} {_why_in_use(folder)}; choose another --output or remove it first"
            )
        return folder
    for folder in _folders(root, f"{escape(name)}-*"):
        if folder.read_status().get("run_id") == run_id:
            return folder
    paths = map(RunFolder, _new_paths(root, name))
    return next(folder for folder in paths if _create(folder, run_id))


def list_runs(root: Path = Path("runs"), name: str | None = None) -> list[RunFolder]:
    """List the folders NAME-TIME under ``root``, the newest first. ``name``: only folders of the
    config of this name, with or without settings appended to the name."""
    return [RunFolder(path) for _, _, path in sorted(_dated(root, name), reverse=True)]


def _create(folder: RunFolder, run_id: str) -> bool:
    """Create the folder and its status.json; return False if the folder is not empty. Of two
    concurrent calls one succeeds."""
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
        raise UserError(
            f"{folder.path} cannot be created: {error.strerror}; choose another --output"
        ) from None
    return True


def _dated(root: Path, name: str | None = None) -> Iterator[tuple[str, int, Path]]:
    """Yield (time, number, path) of each run's folder; time and number are parts of the folder's
    name."""
    names = rf"{re.escape(name)}(?:{NAME_SEPARATOR}.*)?" if name else ".*"
    pattern = re.compile(rf"({names})-(\d{{8}}-\d{{6}})(?:-(\d+))?")
    for folder in _folders(root, "*"):
        parts = pattern.fullmatch(folder.path.name)
        if parts is not None:
            yield parts[2], int(parts[3] or 1), folder.path


def _owner(run_id: str) -> dict[str, Any]:
    return {"run_id": run_id, "host": socket.gethostname(), "pid": os.getpid()}


def _why_in_use(folder: RunFolder) -> str:
    """Return the reason why a folder cannot be claimed."""
    if not folder.path.is_dir():
        return "is not a folder"
    status = folder.read_status()
    if "state" in status:
        run = f"contains a run ({status['state']} at step {status.get('step')})"
        return f"{run}; --resume {quote(str(folder.path))} continues it"
    return "is not empty"


def _folders(root: Path, pattern: str) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted(root.glob(pattern)) if path.is_dir()]


def _new_paths(root: Path, name: str) -> Iterator[Path]:
    """Yield NAME-TIME, NAME-TIME-2 ..., which sort after the names of all existing runs, even if
    the clock was set back."""
    now = f"{datetime.now():%Y%m%d-%H%M%S}"
    time, number = max([(now, 0), *((time, number) for time, number, _ in _dated(root))])
    while True:
        number += 1
        yield root / (f"{name}-{time}" + (f"-{number}" if number > 1 else ""))


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
