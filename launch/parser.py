"""The argument parser of commands and programs: its errors are one line, with hints."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from shlex import quote
from typing import NoReturn

from engine.config.name_hints import Hint
from engine.config.name_hints import known as known_setting
from engine.errors import UserError

_OPTION = re.compile(r"--?[A-Za-z][^=\s]*(?=$|=)")
SETTING = re.compile(r"(?:\+\+?)?([A-Za-z_][\w.]*=.*)", re.DOTALL)
"""A setting; hydra's users write + before a key that their file lacks, and ++ before any."""
_NO_VALUE = re.compile(rf"{_OPTION.pattern}|{SETTING.pattern}|.*\.py$|--$")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError with one line instead of printing the usage and
    exiting. Its help ends with ``examples``, complete command lines."""

    def __init__(
        self, *, prog: str, description: str | None = None, examples: Sequence[str] = ()
    ) -> None:
        lines = [f"example{'s' * (len(examples) > 1)}:", *(f"  {line}" for line in examples)]
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n".join(lines) if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Reject unknown options, all at once; argparse would first take their values for
        positionals."""
        words = sys.argv[1:] if args is None else list(args)
        if problems := [
            self._unknown_message(option, value) for option, value in self._unknown_options(words)
        ]:
            self.error(f"\n{self.prog}: ".join(problems))
        return super().parse_known_args(args, namespace)

    def _unknown_options(self, words: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield each unknown option and its value: behind the equals sign, or the next word if it
        is neither an option, a setting nor a config file; "" without a value."""
        for place, word in enumerate(words):
            if word == "--":
                return
            option = _OPTION.match(word)
            if option is None or any(
                known_option.startswith(option[0]) for known_option in self._option_string_actions
            ):
                continue
            _, equals, value = word.partition("=")
            following = words[place + 1] if len(words) > place + 1 else "--"
            if not equals and not _NO_VALUE.match(following):
                value = following
            yield option[0], value

    def _unknown_message(self, option: str, value: str) -> str:
        """Return the message for an unknown option. It suggests an option whose words are all in
        the unknown option, else a setting of that name, else an option of similar spelling."""
        parts = set(option.strip("-").split("-"))
        options = [each for each in self._option_string_actions if each.startswith("--")]
        near = [each for each in options if {*each.strip("-").split("-")} < parts]
        hint = Hint()
        if not near and any("KEY=VALUE" in str(action.metavar) for action in self._actions):
            hint = known_setting(option.strip("-"))
        if hint.why:
            return f"{option} is not an option: {hint.why}"
        if hint.settings:
            given = quote(value) if value else "..."
            shown = " or ".join(
                name if "=" in name else f"{name}={given}" for name in hint.settings
            )
            return f"{option} is not an option; settings have no dashes: did you mean {shown}?"
        near = near or difflib.get_close_matches(option, options, n=1, cutoff=0.7)
        return f"{option} is not an option; " + (
            f"did you mean {near[0]}?" if near else f"{self.prog} --help lists them"
        )
