"""Measure tokens per second at growing batch sizes until memory runs out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from engine.errors import RunError, UserError
from engine.estimate.estimate import estimate
from engine.formatting import format_bytes
from engine.plan import Plan, make_plan
from engine.unsupported import require_supported
from launch import torchrun
from launch.arguments import (
    add_config,
    add_ranks,
    config_and_overrides,
    given_options,
    output_file,
)
from launch.machine import Machine, this_machine
from launch.number_types import not_negative, positive
from launch.throughput_rows import ThroughputRow, append_row, check_columns
from launch.vocabulary import size_on_this_machine

EXAMPLES = (
    "cuboid throughput gpt_configs/gpt2_vanilla.py precision=bf16",
    "cuboid throughput gpt_configs/gpt2_2d.py --gpus 4 SEQ_LEN=256 --max-batch 8",
)
HOST_SHARE = 0.8
"""Without GPUs: the share of the available host memory up to which sizes are measured. The kernel
would kill other processes, too, if memory ran out."""
FINENESS = 8
"""The bisection ends when its step would be less than 1 / FINENESS of the largest size that
fits."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FILE, KEY=VALUE ..., and the options of the measurement."""
    add_config(parser, required=True)
    add_ranks(parser)
    parser.add_argument(
        "--max-batch",
        type=positive,
        metavar="N",
        help="largest BATCH_SIZE to measure; default: as memory allows (without GPUs up to "
        f"{HOST_SHARE:.0%} of the available memory by estimate)".replace("%", "%%"),
    )
    parser.add_argument(
        "--steps", type=positive, default=10, metavar="N", help="steps to measure; default: 10"
    )
    parser.add_argument(
        "--warmup",
        type=not_negative,
        default=3,
        metavar="N",
        help="steps before them, which are not measured; default: 3",
    )
    parser.add_argument(
        "--csv",
        type=output_file,
        default=Path("throughput.csv"),
        metavar="FILE",
        help="file to which the rows are appended; default: throughput.csv",
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Measure each size in processes of its own, print and record its row, and return 0.

    Raises:
        UserError, ConfigError: the config, the options or the machine cannot be used.
        RunError: the smallest size does not fit, or a measurement failed.
    """
    config, overrides = config_and_overrides(args)
    if config is None:
        raise UserError("no config file given; run `cuboid throughput FILE`")
    check_columns(args.csv)
    machine, rows = this_machine(), list[ThroughputRow]()

    def plan(gpus: int | None, overrides: Sequence[str]) -> Plan:
        made = make_plan(config, gpus=gpus, overrides=overrides, environ=environ)
        require_supported(made)
        return made

    one_copy = plan(None, overrides)
    if one_copy.undetermined:
        overrides = [*overrides, f"model.vocab_size={_vocabulary(one_copy, environ)}"]
    ranks = torchrun.ranks_to_start(
        one_copy.layout.gpus, 0 if args.gpus else machine.gpus, args.gpus
    )
    options = [f"--steps={args.steps}", f"--warmup={args.warmup}", *given_options(args, "backend")]

    def fits(size: int) -> bool:
        # With a global batch size, accumulation would follow from it and not all sizes divide it
        changed = [*overrides, "GLOBAL_BATCH_SIZE=None", f"BATCH_SIZE={size}"]
        made = plan(ranks, changed)
        if problem := _exceeds_host_memory(made, machine):
            print(problem)
            return False
        row = ThroughputRow.of(made, _measure(ranks, [f"--config={config}", *changed, *options]))
        rows.append(row)
        append_row(args.csv, row)
        print(_line(row), flush=True)
        return not row.out_of_memory

    print(HEADER, flush=True)
    sweep(fits, unit=one_copy.settings.num_micro_batches, limit=args.max_batch)
    measured = [row for row in rows if row.tokens_per_second is not None]
    if not measured:
        raise RunError(
            "the smallest batch does not fit into memory; run cuboid validate FILE with "
            "--gpu-memory, which lists changes that fit"
        )
    best = max(measured, key=lambda row: row.tokens_per_second or 0)
    print(
        f"best: BATCH_SIZE={best.batch_size} with {best.tokens_per_second:,} tokens/s; "
        f"the rows are in {args.csv}"
    )
    return 0


def _vocabulary(plan: Plan, environ: Mapping[str, str]) -> int:
    """Return the number of token ids of the plan's data. Raises UserError if it is unknown here."""
    size = size_on_this_machine(plan, environ)
    if isinstance(size, UserError):
        raise UserError(
            f"{plan.cite('model.vocab_size')} is not determined until the data is read ({size}); "
            "pass model.vocab_size=N"
        )
    return size


def sweep(fits: Callable[[int], bool], *, unit: int, limit: int | None) -> None:
    """Call ``fits`` for the batch sizes ``unit``, 2 ``unit``, 4 ``unit`` ... until a size does not
    fit, then bisect between this size and the largest that fits (see ``FINENESS``). No size above
    ``limit`` is tried."""
    largest, size = 0, unit
    too_large = None if limit is None else limit - limit % unit + unit
    while too_large is None or size < too_large:
        if not fits(size):
            too_large = size
            break
        largest, size = size, 2 * size
    while (half := (too_large - largest) // (2 * unit) * unit) >= max(unit, largest // FINENESS):
        if fits(largest + half):
            largest += half
        else:
            too_large = largest + half


def _exceeds_host_memory(plan: Plan, machine: Machine) -> str:
    """Return a message if there are no GPUs and the ranks would need more than ``HOST_SHARE`` of
    the available memory; '' if not."""
    if machine.gpus:
        return ""
    stages = estimate(plan, device="cpu").stages
    copies = plan.layout.tensor * plan.layout.data
    needed = copies * sum(stage.memory.total + stage.memory.host for stage in stages)
    available = psutil.virtual_memory().available
    if needed <= HOST_SHARE * available:
        return ""
    return (
        f"{plan.settings.batch_size:10,}  not measured: needs {format_bytes(needed)} of "
        f"{format_bytes(available)} available"
    )


def _measure(ranks: int, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Run throughput_gpt.py on ``ranks`` ranks and return the fields of its Measurement; None if
    a rank ran out of memory.

    Raises:
        UserError, RunError: the ranks failed for another reason, which they have printed.
    """
    with TemporaryDirectory(prefix="cuboid-", ignore_cleanup_errors=True) as folder:
        result = Path(folder) / "result"
        code = torchrun.run(ranks, [*arguments, f"--result={result}"], program="throughput_gpt")
        text = result.read_text() if result.exists() else None
    if text == "":
        return None
    if code or text is None:
        kind = UserError if code == 2 else RunError
        raise kind("the measurement failed; see the message of the rank above")
    measured: dict[str, Any] = json.loads(text)
    return measured


HEADER = (
    f"{'BATCH_SIZE':>10}  {'tokens/step':>11}  {'ms/step':>9}  {'+-':>7}  {'tokens/s':>10}  memory"
)


def _line(row: ThroughputRow) -> str:
    """Format a measurement as a row of the table on the terminal."""
    start = f"{row.batch_size:10,}  {row.tokens_per_step:11,}"
    if row.out_of_memory:
        return f"{start}  out of memory"
    spread = "-" if row.step_ms_std is None else f"{row.step_ms_std:,.1f}"
    return (
        f"{start}  {row.step_ms_mean:9,.1f}  {spread:>7}  {row.tokens_per_second:10,}  "
        f"{format_bytes(row.peak_bytes or 0)}"
    )
