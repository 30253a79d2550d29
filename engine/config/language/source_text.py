"""Config files as text: reading, parsing, and positions in messages."""

import ast
import json
import re
import warnings
from os.path import lexists
from pathlib import Path

from engine.config.language.limits import SOURCE_BYTES
from engine.config.values import COMMAND_LINE, Origin
from engine.errors import ConfigError, Problem
from engine.files import paths
from models.presets import presets_called

# An absolute import of these is never a config file, even if a file in the config's folder has the
# name: json.py does not hide the standard library, nor model.py the package that Colossal-AI's
# examples import.
COUNTED_LINE = 1000  # characters; in longer lines columns count bytes, which is faster
EXCERPT_LENGTH = 50
# Configs of other programs; simple lines of YAML would parse as Python annotations.
OTHER_FORMATS = {
    ".cfg": "an INI file",
    ".ini": "an INI file",
    ".json": "JSON",
    ".toml": "TOML",
    ".yaml": "YAML",
    ".yml": "YAML",
}


class Source:
    """The text of a file. ``file`` is its name in messages, ``path`` its location on disk."""

    def __init__(self, file: str, text: str, path: Path | None = None) -> None:
        self.file = file
        self.path = path
        self.text = text
        self._lines = re.split(r"\r\n|\r|\n", text)

    def origin(self, node: ast.AST) -> Origin:
        """Return the position where ``node`` starts, from 1."""
        if self.file == COMMAND_LINE:
            return Origin(self.file, 0, 0)
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        text = self._lines[line - 1]
        if not text.isascii() and len(text) < COUNTED_LINE:
            # the parser counts bytes of UTF-8
            column = len(text.encode()[:column].decode(errors="replace"))
        return Origin(self.file, line, column + 1)

    def excerpt(self, node: ast.expr | ast.stmt) -> str:
        """Return the start of the source text of ``node`` as a prefix for messages about it.

        The prefix is empty for the command line, whose messages quote the whole text.
        """
        if self.file == COMMAND_LINE:
            return ""
        line = self._lines[node.lineno - 1].encode()[node.col_offset :]
        end = node.end_col_offset if node.end_lineno == node.lineno else None
        text = line[: None if end is None else end - node.col_offset].decode(errors="replace")
        text = text if text.isprintable() else repr(text)[1:-1]
        truncated = end is None or len(text) > EXCERPT_LENGTH
        return f"{text[:EXCERPT_LENGTH]}{'...' if truncated else ''}: "

    def problem(self, node: ast.AST, message: str, *, column: bool) -> Problem:
        """Make a problem at ``node``."""
        origin = self.origin(node)
        return Problem(self.file, origin.line, origin.column if column else None, message)

    def parse(self) -> ast.Module:
        """Return the syntax tree. Raises ConfigError for text that is not Python."""
        nul = self.text.find("\0")
        if nul >= 0:
            line = self.text.count("\n", 0, nul) + 1
            raise config_error(self.file, "a null byte, which Python does not allow", line)
        try:
            with warnings.catch_warnings():  # of invalid escapes such as "\d"
                warnings.simplefilter("ignore")
                return ast.parse(self.text)
        except SyntaxError as error:
            line, column = error.lineno or 1, max(error.offset or 1, 1)
            raise config_error(self.file, f"syntax error: {error.msg}", line, column) from None
        except ValueError as error:
            raise config_error(self.file, f"not Python: {error}") from None
        except (RecursionError, MemoryError):
            raise config_error(
                self.file, "nested too deeply to be read; assign parts to names"
            ) from None


def config_error(file: str, message: str, line: int = 0, column: int | None = None) -> ConfigError:
    """Make a ConfigError of one problem."""
    return ConfigError([Problem(file, line, column, message)])


def load(path: Path, file: str) -> Source:
    """Read the file at ``path``. Raises ConfigError if it is missing, too long or not UTF-8."""
    try:
        if problem := paths.problem_at(path, paths.FILE):
            raise config_error(file, problem + ("" if lexists(path) else _remedy(path.name)))
        with path.open("rb") as stream:
            data = stream.read(SOURCE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise config_error(file, f"cannot be read: {reason}") from None
    if len(data) > SOURCE_BYTES:
        raise config_error(file, f"longer than {SOURCE_BYTES // 1024} KiB, the limit of a config")
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise config_error(file, f"byte {error.start} is not UTF-8", line) from None
    if other := _other_format(path, text):
        raise config_error(
            file,
            f"is {other}, but a config is Python: lines such as BATCH_SIZE = 8 and "
            "optimizer = dict(lr=3e-4); cuboid settings lists all settings",
        )
    return Source(file, text, path)


def _remedy(name: str) -> str:
    """Return the remedy for a missing file; ``name`` may be the name of a preset."""
    presets = presets_called(name)
    preset = f", such as one with model.type={' or '.join(map(repr, presets))}" if presets else ""
    return f"; pass the path of a config file{preset}"


def _other_format(path: Path, text: str) -> str | None:
    """Return the format of another program's config, by its suffix; JSON by its content too."""
    if path.suffix in OTHER_FORMATS:
        return OTHER_FORMATS[path.suffix]
    if not text.lstrip().startswith("{"):
        return None
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    return "JSON"
