"""Compute the number of steps that fit a number of hours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from launch.number_types import above_zero, positive

EXAMPLES = ("cuboid steps --hours 6 --tokens-per-second 55416 --batch 128 --seq 512",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the time, the speed and the size of a step."""
    parser.add_argument(
        "--hours", type=above_zero, required=True, metavar="H", help="hours of one accelerator"
    )
    parser.add_argument(
        "--tokens-per-second",
        type=above_zero,
        required=True,
        metavar="R",
        help="speed of that accelerator with this model",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        required=True,
        metavar="B",
        help="samples per step, over all ranks and accumulation rounds",
    )
    parser.add_argument(
        "--seq", type=positive, required=True, metavar="S", help="tokens per sample (SEQ_LEN)"
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print MAX_STEPS and the tokens, and return 0."""
    tokens, per_step = args.hours * 3600 * args.tokens_per_second, args.batch * args.seq
    steps = max(1, round(tokens / per_step))
    hours = steps * per_step / args.tokens_per_second / 3600
    print(f"MAX_STEPS={steps}")
    print(f"{tokens:,.0f} tokens in {args.hours:g} hours at {args.tokens_per_second:,g} tokens/s")
    print(f"{steps} steps of {per_step:,} tokens are {steps * per_step:,}: {hours:.4g} hours")
    return 0
