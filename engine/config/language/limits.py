"""Limits on the work that a config can cause, so that no file makes its reader slow, large or
crash.

A config has no loops: each expression is evaluated once, on values of limited size. The work of an
operation is bounded by the weight of its operands, which is charged as they are evaluated.
"""

from engine.config.values import Symbol

SOURCE_BYTES = 32 * 1024  # Python 3.11 parses f-strings in quadratic time: 64 KiB take 0.3 s
TOTAL_BYTES = 64 * 1024  # of a file with all that it inherits
FILES = 64
INHERITANCE_DEPTH = 16
EXPRESSION_DEPTH = 100
VALUE_DEPTH = 50
VALUE_WEIGHT = 20_000
STRING_LENGTH = 65_536
INTEGER_BITS = 1024  # as the largest float
TOTAL_WORK = 300_000
PROBLEMS = 50
CHARACTERS_PER_WEIGHT = 16


class ConfigValueError(Exception):
    """A value that cannot be computed. The message is the reason; the code that catches it adds the
    position."""


class BudgetExceededError(Exception):
    """Stops the reading of a config that takes too much work or has too many problems."""


class Budget:
    """The remaining work for one read of a config."""

    def __init__(self) -> None:
        self._left = TOTAL_WORK

    def charge(self, value: object) -> None:
        """Subtract the weight of ``value`` from the remaining work.

        Shared parts count as often as they occur, which is the work of printing or copying them.

        Raises:
            ConfigValueError: ``value`` is too large, too deep or cyclic, or not encodable text.
            BudgetExceededError: the total work is too much.
        """
        weight, depth, level = 0, 0, [value]
        while level:
            weight += len(level)
            if depth > VALUE_DEPTH:
                raise ConfigValueError(
                    f"nested more than {VALUE_DEPTH} levels deep, or contains itself"
                )
            below: list[object] = []
            for item in level:
                if isinstance(item, str):
                    weight += _check_text(item)
                elif isinstance(item, int):
                    check_bits(item.bit_length())
                elif not isinstance(item, None | float):
                    below += _children(item)
                if weight + len(below) > VALUE_WEIGHT:
                    self._spend(weight)
                    raise ConfigValueError(f"more than {VALUE_WEIGHT:,} items")
            level, depth = below, depth + 1
        self._spend(weight)

    def _spend(self, weight: int) -> None:
        self._left -= weight
        if self._left < 0:
            raise BudgetExceededError("the values of this config are too large")


def check_repeat(length: int, times: int, limit: int) -> None:
    """Raise ConfigValueError if ``length`` x ``times`` is more than ``limit``."""
    if length * times > limit:
        raise ConfigValueError(f"longer than {limit:,}")


def check_bits(bits: int) -> None:
    """Raise ConfigValueError for an integer of too many bits."""
    if bits > INTEGER_BITS:
        raise ConfigValueError(f"an integer of more than {INTEGER_BITS} bits")


def _children(item: object) -> list[object]:
    if isinstance(item, list | tuple):
        return list(item)
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, Symbol):
        args, kwargs = item.args or (), item.kwargs or {}
        return [item.name, *args, *kwargs, *kwargs.values()]
    return []


def _check_text(text: str) -> int:
    """Return the weight that the characters of ``text`` add to the 1 that every item weighs. Raises
    ConfigValueError if ``text`` is too long or not encodable."""
    if len(text) > STRING_LENGTH:
        raise ConfigValueError(
            f"a string of {len(text):,} characters; the limit is {STRING_LENGTH:,}"
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigValueError(
                "a string that is not valid text: half a surrogate pair"
            ) from None
    return len(text) // CHARACTERS_PER_WEIGHT
