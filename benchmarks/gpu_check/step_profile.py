"""The time of our training step, by kind of kernel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.rates import case_of, matmul_rate, seconds_of
from benchmarks.gpu_check.sizes import CheckSizes
from benchmarks.gpu_check.traces import (
    busy_seconds,
    kind_of,
    kinds_of,
    name_backend,
    trace_spans,
)
from benchmarks.step import ours
from engine.estimate.flops import flops_per_token
from engine.training.memory import peak_bytes
from models.parameters import parameter_count

TRACED = 3
MOST = 15
LARGE_STEPS = 5


def measure_large(sizes: CheckSizes) -> dict[str, Any]:
    """Return the seconds of a step of the large model, its MFU as in ``profile_step`` and the most
    bytes that torch allocated."""
    rate = matmul_rate(sizes.square, sizes.square, sizes.square, sizes)
    case = case_of(sizes, large=True)
    seconds = seconds_of(ours(case), sizes.device, min(LARGE_STEPS, sizes.repeats))
    tokens = case.samples * case.length
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "parameters": parameter_count(case.config),
        "peak_bytes": peak_bytes(case.device),
        "matmul_flops": rate,
        "mfu": flops_per_token(case.config, case.length) * tokens / seconds / rate,
    }


def profile_step(sizes: CheckSizes, trace: Path) -> dict[str, Any]:
    """Return the seconds of a step, of each kind of kernel in it, its idle share and its MFU.

    MFU is relative to the measured matmul rate. Steps are timed without the profiler, which slows
    the CPU; the idle share is the part of that time in which no kernel runs.
    """
    rate = matmul_rate(sizes.square, sizes.square, sizes.square, sizes)
    case = case_of(sizes)
    step = ours(case)
    seconds = seconds_of(step, sizes.device, sizes.repeats)
    spans = trace_spans(lambda: [step() for _ in range(TRACED)], trace, sizes.device)
    tokens = sizes.samples * sizes.length
    flops = flops_per_token(case.config, sizes.length) * tokens
    names = [span.name for span in spans if kind_of(span.name) == "attention"]
    by_name: Counter[str] = Counter()
    for span in spans:
        by_name[span.name] += span.seconds / TRACED  # type: ignore[assignment]
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "kinds": {kind: time / TRACED for kind, time in kinds_of(spans).items()},
        "idle": max(0.0, 1 - busy_seconds(spans) / TRACED / seconds),
        "attention": name_backend(names),
        "attention_kernels": sorted(set(names)),
        "largest": by_name.most_common(MOST),
        "matmul_flops": rate,
        "mfu": flops / seconds / rate,
    }
