"""What the user is told instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """The user's input cannot be used. One line that says what would be; exit code 2."""


class RunError(Exception):
    """The run failed for a reason that one line explains; exit code 1."""
