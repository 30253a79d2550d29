"""Paths from the user: expands them and checks the kind of file before it is opened.

A path is relative to the working folder, also in a config file; a leading ``~`` is the home folder.
The kind is taken from ``stat``, because opening a named pipe or a device may block forever.
"""

from __future__ import annotations

import errno
import os
import stat
from glob import glob
from pathlib import Path

FILE, FOLDER = "a file", "a folder"
KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: FOLDER,
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expand(text: str) -> str:
    """Expand a leading ``~``.

    Raises ValueError for text that cannot be a path; its message continues a sentence that begins
    with the text. Non-UTF-8 bytes of the command line and the environment arrive as surrogates.
    """
    if not text:
        raise ValueError("is empty; a path is needed")
    if "\0" in text:
        raise ValueError("contains a null byte, which no path can")
    if reason := not_utf8(text):
        raise ValueError(f"{reason}; rename it")
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise ValueError("names the home folder of a user who does not exist") from None


def not_utf8(text: str) -> str | None:
    """Describe the first non-UTF-8 byte in text of the command line or the environment; None if
    there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        point = ord(text[error.start])
        escaped = 0xDC80 <= point <= 0xDCFF
        character = f"byte 0x{point - 0xDC00:02x}" if escaped else f"U+{point:04X}"
        return f"is not UTF-8 ({character})"
    return None


def kind_at(path: Path) -> str | None:
    """Return the kind of file at a path, from ``KINDS`` or "a broken link"; None if no file is
    there.

    Raises OSError if the kind cannot be read, such as in a folder without permission.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "a broken link" if path.is_symlink() else None
    return KINDS.get(stat.S_IFMT(mode), "a special file")


def problem_at(path: Path, *needed: str) -> str | None:
    """Check that a path is readable and of a ``needed`` kind (``FILE``, ``FOLDER``). Return the
    problem, which continues a sentence that begins with the path; None if there is no problem."""
    try:
        kind = kind_at(path)
        if kind is None:
            return "does not exist" if path.is_absolute() else f"does not exist in {Path.cwd()}"
        if kind not in needed:
            return f"is {kind}; {' or '.join(needed)} is needed"
        may_read = os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None if may_read else f"cannot be read: {os.strerror(errno.EACCES)}"


def problem_of_output(path: Path) -> str | None:
    """Return the reason why a file cannot be created or replaced at a path, as far as known without
    writing; None if no reason is known."""
    try:
        kind = kind_at(path)
        if kind not in (None, FILE, "a device", "a broken link"):
            return f"is {kind}; a file is needed"
        parent = problem_at(path.parent, FOLDER)
    except OSError as error:
        return f"cannot be written: {error.strerror or error}"
    return f"cannot be written: {path.parent} {parent}" if parent else None


def matches(text: str) -> list[str]:
    """List the paths that match a path or a glob pattern, sorted. An existing file or folder whose
    name looks like a pattern matches only itself."""
    if os.path.lexists(text):
        return [text]
    return sorted(glob(text, recursive=True))  # noqa: PTH207 (Path takes no absolute pattern)


def files_below(folder: Path) -> list[Path]:
    """List the files in a folder and its subfolders, sorted. Hidden files and folders are skipped,
    and links to folders are not followed. Raises OSError if a folder cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    files: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(files)
