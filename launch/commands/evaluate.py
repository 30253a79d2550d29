"""Measure a model's loss, perplexity, bits per byte and accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from engine.evaluation.request import EvaluationRequest
from engine.plan import Plan
from engine.runs.folder import RunFolder
from engine.runs.lookup import resolve_weights, run_with_weights
from engine.runs.plan_from_run import evaluation_plan_of_run
from engine.unsupported import require_supported
from launch import torchrun
from launch.arguments import add_ranks, add_step, given_options, run_and_overrides
from launch.machine import count_gpus
from launch.number_types import positive

EXAMPLES = (
    "cuboid evaluate --step best",
    "cuboid evaluate --split all --last-n 128 --sliding",
    "cuboid evaluate runs/demo-20260101-120000 TENSOR_PARALLEL=1 MODE=serial",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add [RUN], KEY=VALUE ... and the options that choose weights, samples and ranks."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[RUN]|KEY=VALUE",
        help="run folder (default: the newest run), and settings that override the run's, such as "
        "TENSOR_PARALLEL=1 MODE=None",
    )
    add_step(parser)
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="split to evaluate: validation, train, or another one that the data has; several with "
        "commas, or all (every split but train); default: the run's eval.split",
    )
    parser.add_argument(
        "--samples", type=positive, metavar="N", help="evaluate the first N samples; default: all"
    )
    parser.add_argument(
        "--last-n", type=positive, metavar="N", help="score only the last N positions of a sample"
    )
    parser.add_argument(
        "--sliding",
        action="store_true",
        help="with --last-n N: samples overlap, N tokens apart, so that N of SEQ_LEN positions "
        "score every target but the first SEQ_LEN - N",
    )
    add_ranks(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run evaluate_gpt.py under torchrun, in the layout of the run or of the overrides, and return
    the exit code.

    Raises:
        UserError, ConfigError: the run, its weights or the options cannot be used. Nothing has
            been started by then.
    """
    run, overrides = run_and_overrides(args)
    folder, request = run_with_weights(run), evaluation_request(args)
    resolve_weights(folder, args.step)
    one_copy = plan_on(None, folder, overrides, request)
    ranks = torchrun.ranks_to_start(
        one_copy.layout.gpus, 0 if args.gpus else count_gpus(), args.gpus
    )
    plan_on(ranks, folder, overrides, request)
    arguments = [str(folder.path), *overrides, f"--step={args.step}"]
    arguments += given_options(args, "split", "samples", "last_n", "backend")
    arguments += ["--sliding"] * args.sliding + ["--json"] * args.json
    return torchrun.run(ranks, arguments, program="evaluate_gpt")


def evaluation_request(args: argparse.Namespace) -> EvaluationRequest:
    return EvaluationRequest(
        split=args.split, samples=args.samples, last_n=args.last_n, sliding=args.sliding
    )


def plan_on(
    gpus: int | None, folder: RunFolder, overrides: Sequence[str], request: EvaluationRequest
) -> Plan:
    """Plan the evaluation on ``gpus`` ranks (None: one copy of the model). Raises UserError or
    ConfigError."""
    plan = evaluation_plan_of_run(folder, gpus=gpus, overrides=overrides)
    require_supported(plan)
    request.check(plan)
    return plan
