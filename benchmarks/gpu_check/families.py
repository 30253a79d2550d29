"""A few steps of each family of configs: losses against one process on the CPU, and memory against
its estimate. Imports no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.check import CheckCase, GpuCheck
from benchmarks.gpu_check.processes import CaseFailedError, run_ranks
from benchmarks.gpu_check.results import CaseResult
from engine.estimate.estimate import estimate
from engine.estimate.local_shapes import DeviceType
from engine.plan import make_plan
from tests.support.worlds import free_port

CONFIGS = Path(__file__).parents[2] / "gpt_configs"
MIB = 2**20
SECONDS = 120.0
BARE = ("data.type=synthetic", "eval.every=0", "log.tensorboard=False")
"""The settings of every run: training only."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A config with overrides and a number of ranks.

    ``data``: the degree of data parallelism.
    ``bound``: the greatest relative difference of a loss from that on the CPU in float32.
    """

    config: str
    overrides: tuple[str, ...] = ("precision=float32",)
    ranks: int = 1
    data: int = 1
    bound: float = 1e-4


FAMILIES = {
    "vanilla": Family(config="gpt2_vanilla"),
    "bf16": Family(config="gpt2_vanilla", overrides=("precision=bf16",), bound=2e-2),
    "fp16": Family(
        config="gpt2_vanilla", overrides=("precision=fp16", "loss_scale.initial=1024"), bound=1e-2
    ),
    "compile": Family(
        config="gpt2_vanilla", overrides=("precision=bf16", "compile=True"), bound=2e-2
    ),
    "zero3-cpu": Family(
        config="gpt2_zero3",
        overrides=("precision=float32", "optimizer.type=adam"),  # as the other configs
        ranks=2,
        data=2,
    ),
    "zero3-nvme": Family(config="gpt2_nvme", ranks=2, data=2),
    "2d": Family(config="gpt2_2d", ranks=4),
    "2d-bf16": Family(config="gpt2_2d", overrides=("precision=bf16",), ranks=4, bound=2e-2),
    "3d": Family(config="gpt2_3d", ranks=8),
    "pp1d": Family(config="gpt2_pp1d", ranks=8, data=2),
}
REFERENCE = FAMILIES["vanilla"]


def cases() -> list[CheckCase]:
    def case(name: str, family: Family) -> CheckCase:
        return CheckCase(name=name, run=lambda check: run_family(check, name, family))

    return [
        CheckCase(name="cpu", run=run_reference),
        *(case(name, family) for name, family in FAMILIES.items()),
    ]


def run_reference(check: GpuCheck) -> Iterator[CaseResult]:
    """Train one process on the CPU in float32; its losses are the reference of the other runs."""
    try:
        started = time.monotonic()
        numbers = train(check, "cpu", REFERENCE, device="cpu")
        check.reference.set_result(numbers["losses"])
    finally:
        if not check.reference.done():
            check.reference.set_exception(CaseFailedError("the run on the CPU failed"))
    text = f"losses {shown(numbers['losses'])} (one process, float32)"
    yield CaseResult(case="cpu", text=text, seconds=time.monotonic() - started, numbers=numbers)


def run_family(check: GpuCheck, name: str, family: Family) -> Iterator[CaseResult]:
    started = time.monotonic()
    numbers = train(check, name, family, device=check.sizes.device)
    theirs = check.reference.result(check.timeout(SECONDS))
    ours = numbers["losses"]
    assert len(ours) == len(theirs) == check.sizes.steps, f"{len(ours)} steps were logged"
    far = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    yield CaseResult(
        case=name,
        passed=far <= family.bound,
        seconds=time.monotonic() - started,
        text=f"losses {shown(ours)}, the CPU's {shown(theirs)}: apart by {far:.1e} "
        f"(bound {family.bound:.0e}); {memory_text(numbers)}",
        numbers={**numbers, "cpu_losses": theirs, "apart": far, "bound": family.bound},
    )


def train(check: GpuCheck, name: str, family: Family, *, device: str) -> dict[str, Any]:
    """Train the steps of a family; return its losses, and the memory predicted and allocated."""
    sizes = check.sizes
    overrides = [
        *sizes.family,
        *family.overrides,
        f"BATCH_SIZE={sizes.global_batch // family.data}",
        f"MAX_STEPS={sizes.steps}",
    ]
    if family.config == "gpt2_nvme":
        disk = check.folder / "nvme"
        disk.mkdir(exist_ok=True)
        overrides.append(f"NVME_PATH={disk}")
    return train_config(
        check, name, CONFIGS / f"{family.config}.py", overrides, family.ranks, device=device
    )


def train_config(
    check: GpuCheck, name: str, config: Path, overrides: Sequence[str], size: int, *, device: str
) -> dict[str, Any]:
    """Train a config on ``size`` forked ranks and read its log."""
    overrides = [
        *overrides,
        *BARE,
        "timeout=60",
        "start_timeout=120",
    ]
    output = check.folder / "runs" / name
    arguments = [f"--config={config}", *overrides, f"--output={output}"]
    log, timeout = check.log(name), check.timeout(SECONDS)
    with free_port() as port:
        run_ranks(
            size,
            "train",
            arguments,
            port,
            device,
            check.threads(size),
            log=log,
            timeout=timeout,
        )
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    kind: DeviceType = "cuda" if device == "cuda" else "cpu"
    plan = make_plan(config, gpus=size, overrides=overrides, environ={})
    with suppress(OSError):  # hundreds of megabytes that nobody reads
        (output / "model.safetensors").unlink()
    return {
        "losses": [row["loss"] for row in rows],
        "tokens_per_second": rows[-1]["tokens_per_second"],
        "allocated": rows[-1]["memory_bytes"],
        "predicted": estimate(plan, device=kind).fullest.memory.total,
    }


def shown(losses: Sequence[float]) -> str:
    return " ".join(f"{loss:.4f}" for loss in losses)


def memory_text(numbers: dict[str, Any]) -> str:
    predicted, allocated = numbers["predicted"] / MIB, numbers["allocated"] / MIB
    return f"memory {allocated:,.0f} MiB, predicted {predicted:,.0f}"
