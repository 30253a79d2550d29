"""The program that torchrun starts to evaluate: one rank of an evaluation.

torchrun --nproc_per_node 4 evaluate_gpt.py runs/NAME [KEY=VALUE ...]
"""

from __future__ import annotations

from engine.world.signals import block_signals

if __name__ == "__main__":
    block_signals()  # until the rank can report a stop: importing torch takes seconds

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from engine.data.source import default_cache
from engine.evaluation.evaluate import evaluate
from engine.evaluation.result import Evaluation
from engine.files.atomic_write import write_atomically
from engine.plan import Plan
from engine.runs.lookup import run_with_weights
from engine.world.coordination.launch_environment import LaunchInfo
from engine.world.world import World
from launch.arguments import add_launch_options, run_and_overrides
from launch.commands.evaluate import add_arguments, evaluation_request, plan_on
from launch.parser import Parser
from launch.rank import exit_process, run_rank


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Evaluate and return the exit code: 0 done, 1 failed, 2 the user's input was rejected."""

    def work(args: argparse.Namespace, world: World) -> None:
        run, overrides = run_and_overrides(args)
        folder, request = run_with_weights(run), evaluation_request(args)
        results = evaluate(
            world,
            folder,
            args.step,
            request,
            cache=default_cache(environ),
            overrides=overrides,
        )
        if world.is_main:
            several = request.names_several_splits
            print(report(results, as_json=args.json, as_list=several), flush=True)
            try:
                for result in results:
                    write_atomically(result.path(folder.path), result.as_json() + "\n")
            except OSError as error:  # a run of another user can be evaluated, too
                print(
                    f"{folder.path}: cannot write the result there: {error.strerror}",
                    file=sys.stderr,
                )

    return run_rank(argv, environ, parse=parse, plan=plan, work=work)


def report(results: Sequence[Evaluation], *, as_json: bool, as_list: bool) -> str:
    """Format the results for stdout: a table for each split, or one JSON value, which is a list if
    the options name several splits."""
    texts = [result.as_json() if as_json else result.table() for result in results]
    if as_json and as_list:
        return f"[{', '.join(texts)}]"
    return "\n".join(texts)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="evaluate_gpt.py",
        description="Evaluate a run: one rank of the evaluation.",
        examples=["torchrun --nproc_per_node 4 evaluate_gpt.py runs/gpt2_2d-20260101-120000"],
    )
    add_arguments(parser)
    add_launch_options(parser)
    return parser.parse_intermixed_args(argv)


def plan(args: argparse.Namespace, launch_info: LaunchInfo, environ: Mapping[str, str]) -> Plan:
    """Return the plan of the evaluation, which every rank makes for itself."""
    run, overrides = run_and_overrides(args)
    return plan_on(launch_info.size, run_with_weights(run), overrides, evaluation_request(args))


if __name__ == "__main__":
    exit_process(main())
