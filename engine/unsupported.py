"""Settings that the config accepts but training does not support yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.config.schema import Settings
from engine.errors import UserError
from engine.plan import Plan

UNSUPPORTED: Mapping[str, tuple[Callable[[Settings], bool], str]] = {
    "log.statistics": (
        lambda s: s.log.statistics is not None and s.zero.offload_params == "nvme",
        "log.statistics=None, or zero.offload_params='cpu': statistics of an update need a copy of "
        "the weights in memory",
    ),
}
"""Setting -> (whether the settings use it in an unsupported way, settings to use instead)."""


def unsupported_settings(plan: Plan) -> list[str]:
    """Return a line for each setting of the plan that `cuboid train` rejects."""
    return [
        f"{plan.cite(name)} passes `cuboid validate`, but cannot be trained yet; use {instead}"
        for name, (is_unsupported, instead) in UNSUPPORTED.items()
        if is_unsupported(plan.settings)
    ]


def require_supported(plan: Plan) -> None:
    """Raise UserError if the plan has a setting that `cuboid train` rejects."""
    if lines := unsupported_settings(plan):
        raise UserError("\n".join(lines))
