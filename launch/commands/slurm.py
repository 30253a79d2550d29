"""Write an sbatch script that trains a config on several nodes; submit it."""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from shlex import quote

from engine.errors import RunError, UserError
from engine.files.atomic_write import write_atomically
from engine.formatting import plural
from engine.plan import Plan, make_plan
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import plan_of_run
from engine.runs.start_candidates import (
    StartCandidate,
    chosen_output,
    names_run,
    resume_or_default,
    start_candidates,
)
from engine.unsupported import require_supported
from launch.arguments import (
    add_config,
    add_run,
    config_and_overrides,
    given_options,
    output_file,
    run_arguments,
    run_to_resume,
    start_options,
)
from launch.number_types import positive
from launch.slurm_script import SlurmJob

EXAMPLES = (
    "cuboid slurm gpt_configs/gpt3_pp1d.py --nodes 2 --partition a100 --time 9:00",
    "cuboid slurm gpt_configs/gpt2_2d.py --nodes 2 --gpus 16 MAX_STEPS=900 --submit",
)
SBATCH_OPTIONS = ("partition", "account", "qos", "time", "constraint")
CORES_PER_GPU = 4
"""Threads of a rank: the main one, autograd's, NCCL's and the one that checks liveness."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FILE, KEY=VALUE ..., the options of a run and those of the job."""
    add_config(parser, required=True)
    add_run(parser)
    parser.add_argument(
        "--nodes", type=positive, required=True, metavar="N", help="number of machines"
    )
    parser.add_argument(
        "--cpu", action="store_true", help="train on CPUs; default: one GPU for each rank"
    )
    parser.add_argument(
        "--cores-per-rank",
        type=positive,
        metavar="N",
        help=f"CPU cores of each rank; default: {CORES_PER_GPU}, with --cpu 1",
    )
    for name in SBATCH_OPTIONS:
        parser.add_argument(f"--{name}", metavar=name.upper(), help="as for sbatch")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="another option of sbatch, such as exclusive or mail-type=END; repeat it for more",
    )
    parser.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="shell code to run before the start, such as 'module load cuda'; repeat it for more",
    )
    parser.add_argument(
        "--save-seconds",
        type=positive,
        default=120,
        metavar="N",
        help="save and requeue this long before the time limit; default: 120",
    )
    parser.add_argument(
        "--script", type=output_file, metavar="FILE", help="file to write; default: NAME.sbatch"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing FILE")
    parser.add_argument("--submit", action="store_true", help="submit it with sbatch")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Write the script, with --submit submit it, and return 0.

    Raises:
        UserError, ConfigError: the config or the options cannot be used, or there is no sbatch.
        RunError: sbatch failed.
    """
    config, overrides = config_and_overrides(args)
    plan = _plan(args, config, overrides, environ)
    options = start_options(args)
    candidate = next(start_candidates("", plan, options))
    if candidate.finished:
        raise UserError(candidate.finished)
    output = chosen_output(plan, options)
    starts_anew = resume_or_default(options, plan) == "none"
    if starts_anew and output is not None and RunFolder(output).read_status():
        raise UserError(f"{output} contains a run; --resume {quote(str(output))} continues it")
    sbatch = shutil.which("sbatch", path=environ.get("PATH"))
    if args.submit and sbatch is None:
        raise UserError(
            "--submit needs sbatch, which is not on PATH; run this where jobs are submitted, or "
            "leave out --submit and run sbatch there"
        )
    arguments = [
        argument
        for argument in run_arguments(args, config, overrides)
        if not argument.startswith(("--resume=", "--output="))
    ]
    job = _job(args, plan, candidate, arguments, environ)
    script = args.script or Path(f"{plan.settings.name}.sbatch")
    if script.exists() and not args.force:
        raise UserError(
            f"{script} exists; replace it with --force, or write another with --script FILE"
        )
    write_atomically(script, job.text(f"{plan.settings.source}, {plan.layout.gpus} ranks"))
    devices = "GPU" if job.gpus else "CPU rank"
    print(f"{script}: {plural(job.nodes, 'node')} x {plural(job.ranks_per_node, devices)}")
    for line in _remarks(plan, args):
        print(line)
    if sbatch is None or not args.submit:
        print(f"submit it   sbatch {quote(str(script))}")
        return 0
    return _submit(sbatch, script, environ)


def _plan(
    args: argparse.Namespace,
    config: Path | None,
    overrides: Sequence[str],
    environ: Mapping[str, str],
) -> Plan:
    """Plan the config, or the run to resume, on all nodes: on --gpus ranks, by default on the
    fewest that fill each node alike with whole copies of the model."""

    def plan_on(gpus: int | None) -> Plan:
        if config is not None:
            return make_plan(config, gpus=gpus, overrides=overrides, environ=environ)
        return plan_of_run(run_to_resume(args), gpus=gpus, overrides=overrides)

    ranks, nodes = args.gpus, args.nodes
    if ranks is None:
        ranks = math.lcm(plan_on(None).layout.gpus, nodes)
    if ranks % nodes:
        fewer = ranks - ranks % nodes
        nearest = [str(number) for number in (fewer, fewer + nodes) if number]
        raise UserError(
            f"--gpus {ranks} is the number of ranks on all nodes and not a multiple of --nodes "
            f"{nodes}; nearest: {', '.join(nearest)}"
        )
    plan = plan_on(ranks)
    require_supported(plan)
    return plan


def _job(
    args: argparse.Namespace,
    plan: Plan,
    candidate: StartCandidate,
    arguments: Sequence[str],
    environ: Mapping[str, str],
) -> SlurmJob:
    """Return the job of ``plan``. The run folder is the folder of the run to resume, --output, or
    by default runs/NAME-TIME-JOB with the time of this call and the job's number; a requeued job
    keeps its number."""
    known = candidate.run_folder or chosen_output(plan, start_options(args))
    name = plan.settings.name
    unnamed = quote(f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}-") + '"$SLURM_JOB_ID"'
    backend = given_options(args, "backend")
    spec = find_spec("train_gpt")
    assert spec is not None
    assert spec.origin is not None
    return SlurmJob(
        name=name,
        nodes=args.nodes,
        ranks_per_node=plan.layout.gpus // args.nodes,
        gpus=not args.cpu,
        cores_per_rank=args.cores_per_rank or (1 if args.cpu else CORES_PER_GPU),
        save_seconds=args.save_seconds,
        options={option: getattr(args, option) for option in SBATCH_OPTIONS},
        flags=[flag.lstrip("-") for flag in args.sbatch],
        setup=args.setup,
        environ=environ,
        folder=Path.cwd(),
        run_folder=unnamed if known is None else quote(str(known)),
        python=sys.executable,
        program=spec.origin,
        start=[*map(quote, arguments), *_folder_arguments(args, candidate)],
        resume=['--resume="$run"', *backend],
    )


def _folder_arguments(args: argparse.Namespace, candidate: StartCandidate) -> list[str]:
    """Return the arguments, quoted for the shell, by which the job's first start finds its folder.
    The script's variable ``run`` has the path of the folder."""
    known = candidate.run_folder is not None
    if not names_run(args.resume):
        return ['--resume="$run"'] if known else ['--output="$run"', "--resume=auto"]
    resume = f"--resume={quote(args.resume)}"
    return [resume] if known else [resume, '--output="$run"']


def _remarks(plan: Plan, args: argparse.Namespace) -> list[str]:
    """Return warnings for the user to read before the job is submitted."""
    remarks = list(plan.warnings)
    if not plan.settings.checkpoint.is_enabled:
        remarks.append(
            f"{plan.settings.source}: checkpoint.every is not set: the run saves when it is "
            "stopped and loses all steps if a node fails"
        )
    if args.time is None:
        remarks.append("no --time: the partition's default limit applies")
    return remarks


def _submit(sbatch: str, script: Path, environ: Mapping[str, str]) -> int:
    """Submit the script and print sbatch's answer. Raises RunError."""
    done = subprocess.run(
        [sbatch, str(script)], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RunError(f"sbatch {script} failed: {done.stderr.strip() or done.stdout.strip()}")
    print(done.stdout.strip())
    return 0
