"""Settings that are understood and checked, and that training does not honour so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.config.schema import Settings
from engine.errors import UserError
from engine.plan import Plan

# setting -> (whether it asks for what is not built, what to set instead)
UNSUPPORTED: Mapping[str, tuple[Callable[[Settings], bool], str]] = {
    "compile": (
        lambda s: s.compile and (s.mode != "serial" or s.zero.stage > 0),
        "compile=False, or MODE=None with zero.stage=0",
    ),
}


def unsupported_settings(plan: Plan) -> list[str]:
    """A line for each setting of the plan that `cuboid train` has to refuse."""
    return [
        f"{plan.cite(name)} passes `cuboid validate`, but cannot be trained yet; use {instead}"
        for name, (asks, instead) in UNSUPPORTED.items()
        if asks(plan.settings)
    ]


def require_supported(plan: Plan) -> None:
    """Raises UserError with those lines, if there are any."""
    if lines := unsupported_settings(plan):
        raise UserError("\n".join(lines))
