"""Metrics of a step for tests of their destinations."""

from __future__ import annotations

from typing import Any

from engine.runs.metrics import StepMetrics


def row(step: int, **changes: Any) -> StepMetrics:
    """Return the metrics of a step; ``changes`` replaces fields."""
    values: dict[str, Any] = {
        "step": step,
        "loss": 3.0 / step,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens": 512 * step,
        "tokens_per_second": 1000.0,
        "seconds": 0.5,
        "memory_by_rank": (100, 300, 200),
    }
    return StepMetrics(**values | changes)
