"""The kernels of a trace of torch's profiler, by kind."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

CATEGORIES = {"cuda": {"kernel", "gpu_memcpy", "gpu_memset"}, "cpu": {"cpu_op"}}
"""The categories of a trace's events that are work of a device."""

KINDS = (
    ("attention", r"flash|fmha|sdpa|attention|attn|dot_do_o|convert_dq"),
    ("communication", r"nccl|gloo|c10d"),
    ("optimizer", r"adam|multi_tensor|foreach|lpnorm"),
    ("norm", r"layer_norm|layernorm|gammabeta"),
    ("pointwise", r"^triton_|cpp_fused|gelu"),
    ("matmul", r"gemm|nvjet|cublas|matmul|splitk|gemv|aten::(add|b)?mm$|linear_pointwise|cutlass"),
    ("embedding", r"embedding|indexselect|index_select|radix|krn_|compute_grad_weight|onesweep"),
    ("loss", r"^_statistics$|^_gradient$"),
    ("loss", r"softmax|logsumexp|log_|::log|amax|max_|maxops|maxnan|scatter|gather|nll"),
    ("copies", r"memcpy|memset|copy|_to$|clone|fill|zero|::cat$|catarray"),
    ("pointwise", r"elementwise|add|mul|div|sub|sum|reduce"),
)
"""(kind, pattern of the names of its CUDA kernels or CPU operators); the first match counts."""

BACKENDS = {"cudnn": r"cudnn", "flash": r"flash", "efficient": r"fmha|efficient|cutlass"}


@dataclass(frozen=True, kw_only=True)
class Span:
    """A kernel, or an operator on a CPU.

    ``start``, ``stop``: seconds since the zero of the trace.
    ``seconds``: its duration without that of nested spans.
    """

    name: str
    start: float
    stop: float
    seconds: float


def trace_spans(work: Callable[[], Any], path: Path, device: str) -> list[Span]:
    """Run ``work`` under torch's profiler, write the trace to ``path`` and return the device's
    spans."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text(errors="replace"))["traceEvents"]
    return spans_of(events, CATEGORIES[device])


def spans_of(events: Iterable[dict[str, Any]], categories: set[str]) -> list[Span]:
    """Return the complete events of the categories. Events of a thread or stream may be nested."""
    lanes: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in categories:
            lanes[event["pid"], event["tid"]].append(event)
    return [span for lane in lanes.values() for span in _own(lane)]


def _own(lane: list[dict[str, Any]]) -> list[Span]:
    lane.sort(key=lambda event: (event["ts"], -event["dur"]))
    inside = [0.0] * len(lane)
    open_events: list[int] = []
    for number, event in enumerate(lane):
        while open_events and event["ts"] >= _stop(lane[open_events[-1]]):
            open_events.pop()
        if open_events:
            inside[open_events[-1]] += event["dur"]
        open_events.append(number)
    return [
        Span(
            name=event["name"],
            start=event["ts"] / 1e6,
            stop=_stop(event) / 1e6,
            seconds=max(0.0, event["dur"] - within) / 1e6,
        )
        for event, within in zip(lane, inside, strict=True)
    ]


def _stop(event: dict[str, Any]) -> float:
    stop: float = event["ts"] + event["dur"]
    return stop


def kind_of(name: str) -> str:
    """Return the kind of a kernel, by its name."""
    lower = name.lower()
    return next((kind for kind, pattern in KINDS if re.search(pattern, lower)), "other")


def kinds_of(spans: Iterable[Span]) -> dict[str, float]:
    """Return the seconds by kind, in descending order."""
    seconds: dict[str, float] = defaultdict(float)
    for span in spans:
        seconds[kind_of(span.name)] += span.seconds
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def busy_seconds(spans: Iterable[Span]) -> float:
    """Return the length of the union of the spans; concurrent kernels count once."""
    busy, reached = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        busy += max(0.0, span.stop - max(span.start, reached))
        reached = max(reached, span.stop)
    return busy


def name_backend(kernels: Sequence[str]) -> str:
    """Return the attention backend of the kernels, by its name in torch's SDPBackend."""
    text = " ".join(kernels).lower()
    return next((name for name, sign in BACKENDS.items() if re.search(sign, text)), "math")
