"""Measure loss, perplexity, bits per byte and accuracy of weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from engine.evaluation import EvaluationRequest
from engine.plan import Plan
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import plan_of_run
from engine.runs.resolve import resolve_weights, run_with_weights
from engine.unsupported import require_supported
from launch import torchrun
from launch.arguments import add_ranks, add_step, positive, run_and_overrides
from launch.machine import count_gpus

EXAMPLES = (
    "cuboid evaluate --step best",
    "cuboid evaluate runs/demo-20260101-120000 TENSOR_PARALLEL=1 MODE=serial",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[RUN], KEY=VALUE ..., which of its weights, and on what."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[RUN]|KEY=VALUE",
        help="a run's folder, by default the newest, and settings of it to override, such as "
        "TENSOR_PARALLEL=1 MODE=None",
    )
    add_step(parser)
    parser.add_argument(
        "--split", choices=["train", "validation"], default="validation", help="default: validation"
    )
    parser.add_argument(
        "--samples", type=positive, metavar="N", help="only the first N of the split"
    )
    parser.add_argument(
        "--last-n", type=positive, metavar="N", help="only the last N positions of each sample"
    )
    add_ranks(parser)
    parser.add_argument("--json", action="store_true", help="for programs, instead of a table")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Start torchrun with evaluate_gpt.py in the layout of the run, or that of the overrides; its
    exit code.

    Raises UserError or ConfigError, before anything starts, for what can be told by then.
    """
    run, overrides = run_and_overrides(args)
    folder, request = run_with_weights(run), evaluation_request(args)
    resolve_weights(folder, args.step)
    one = plan_on(None, folder, overrides, request)
    ranks = torchrun.processes(one.layout.gpus, 0 if args.gpus else count_gpus(), args.gpus)
    plan_on(ranks, folder, overrides, request)
    handed = [str(folder.path), *overrides, f"--step={args.step}", f"--split={args.split}"]
    for name in ("samples", "last_n", "backend"):
        value = getattr(args, name)
        if value is not None:
            handed.append(f"--{name.replace('_', '-')}={value}")
    return torchrun.run(ranks, handed + ["--json"] * args.json, program="evaluate_gpt")


def evaluation_request(args: argparse.Namespace) -> EvaluationRequest:
    return EvaluationRequest(split=args.split, samples=args.samples, last_n=args.last_n)


def plan_on(
    gpus: int | None, folder: RunFolder, overrides: Sequence[str], request: EvaluationRequest
) -> Plan:
    """The run's plan on so many GPUs, by default on the fewest. Raises UserError or ConfigError."""
    plan = plan_of_run(folder, gpus=gpus, overrides=overrides)
    require_supported(plan)
    request.check(plan)
    return plan
