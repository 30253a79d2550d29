"""The other cases: machine, tests, kill and resume, memory, rates. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_check.check import CheckCase, GpuCheck
from benchmarks.gpu_check.families import BARE, CONFIGS, MIB, memory_text, train_config
from benchmarks.gpu_check.packages import ROOT
from benchmarks.gpu_check.processes import CaseFailedError, run_program, run_ranks
from benchmarks.gpu_check.results import CaseResult

T = 1e12


def on_one_rank(check: GpuCheck, case: str, *arguments: Any, seconds: float = 60) -> Any:
    """Run the function ``case`` of benchmarks/gpu_check/rank_tasks.py and return its result."""
    (result,) = run_ranks(
        1, case, check.sizes, *arguments, log=check.log(case), timeout=check.timeout(seconds)
    )
    return result


def machine(check: GpuCheck) -> Iterator[CaseResult]:
    """Report the versions of Python and torch, and the device."""
    versions = on_one_rank(check, "machine")
    words = ", ".join(f"{name} {value}" for name, value in versions.items() if value is not None)
    yield CaseResult(case="machine", passed=True, text=words, numbers=versions)


def tests(check: GpuCheck) -> Iterator[CaseResult]:
    """Run the tests that are marked gpu."""
    files = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in file.read_text("utf-8")
    ]
    report = check.folder / "tests.xml"
    pytest = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    started, failed = time.monotonic(), ""
    try:
        run_program(
            [*pytest, f"--rootdir={ROOT}", *(str(ROOT / file) for file in files)],
            check.log("tests"),
            check.timeout(180),
        )
    except CaseFailedError as error:
        failed = str(error)
        if not report.is_file():
            raise
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    wrong = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    text = f"{passed} of {count['tests']} passed, {count['skipped']} skipped"
    yield CaseResult(
        case="tests",
        passed=not failed and not wrong,
        seconds=time.monotonic() - started,
        text=f"{text}; {', '.join(wrong) or failed}" if wrong or failed else text,
        numbers={**count, "failed": wrong},
    )


def resume(check: GpuCheck) -> Iterator[CaseResult]:
    """Check that a run that is killed and restarted by torchrun ends with the same weights, bit for
    bit, as an uninterrupted run."""
    started, digests = time.monotonic(), {}
    config = CONFIGS / "gpt2_vanilla.py"
    overrides = [
        *check.sizes.family,
        "precision=bf16",
        f"BATCH_SIZE={check.sizes.global_batch}",
        "MAX_STEPS=6",
        "deterministic=True",
        "model.embd_pdrop=0.1",
        "model.resid_pdrop=0.1",
        "model.attn_pdrop=0.1",
        "checkpoint.every=2",
        *BARE,
    ]
    for name, fault in (("straight", ""), ("killed", "kill:0:5")):
        output = check.folder / "runs" / name
        said = run_program(
            [
                *("-m", "launch.cli", "train", str(config), *overrides),
                *("--gpus=1", f"--output={output}", "--max-restarts=1"),
            ],
            check.log(f"resume-{name}"),
            check.timeout(150),
            FAULT=fault,
            **({"CUDA_VISIBLE_DEVICES": ""} if check.sizes.device == "cpu" else {}),
        )
        if ("resuming from" in said) != bool(fault):
            raise CaseFailedError(f"the {name} run did{'' if fault else ' not'} begin at step 1")
        weights = output / "model.safetensors"
        digests[name] = hashlib.sha256(weights.read_bytes()).hexdigest()
    same = digests["straight"] == digests["killed"]
    yield CaseResult(
        case="resume",
        passed=same,
        seconds=time.monotonic() - started,
        text="killed in step 5, resumed from step 4 of 6: "
        + ("the same weights, bit for bit" if same else f"OTHER weights: {digests}"),
        numbers=digests,
    )


def memory(check: GpuCheck) -> Iterator[CaseResult]:
    """Compare allocated with estimated memory, of GPT-2 small at full length."""
    batch = check.sizes.memory_batch
    settings = {
        "bf16": ("precision=bf16", "model.checkpoint=False", f"BATCH_SIZE={batch}"),
        "selective": ("precision=bf16", "model.checkpoint='selective'", f"BATCH_SIZE={batch}"),
        "checkpoint": ("precision=bf16", f"BATCH_SIZE={batch}"),
        "float32": ("precision=float32", "model.checkpoint=False", f"BATCH_SIZE={batch // 4}"),
    }
    for name, changes in settings.items():
        started = time.monotonic()
        overrides = [*check.sizes.memory, *changes, "MAX_STEPS=3"]
        numbers = train_config(
            check,
            f"memory-{name}",
            CONFIGS / "gpt2_vanilla.py",
            overrides,
            1,
            device=check.sizes.device,
        )
        ratio = numbers["allocated"] / numbers["predicted"]
        yield CaseResult(
            case="memory",
            seconds=time.monotonic() - started,
            text=f"{', '.join(changes)}: {memory_text(numbers)} ({ratio:.2f})",
            numbers={"settings": overrides, **numbers},
        )


def matmul(check: GpuCheck) -> Iterator[CaseResult]:
    """Measure the rate of each matmul of the model."""
    for rate in on_one_rank(check, "matmul"):
        rates = ", ".join(f"{name} {flops / T:,.3g}" for name, flops in rate["flops"].items())
        shape = " x ".join(map(str, rate.get("shape", ())))
        text = f"{rate['name']} {shape}: {rates} TFLOP/s (bf16)"
        yield CaseResult(case="matmul", text=text, numbers=rate)


def head(check: GpuCheck) -> Iterator[CaseResult]:
    """Measure the head and its loss, with one improvement after the other, and compare the loss and
    the gradients with those of none."""
    for row in on_one_rank(check, "head"):
        last, near = row["name"] == "loss kernels", row["loss"] < 1e-4 and row["dw"] < 1e-2
        near = near and row["dx"] < 1e-2
        missing = last and check.sizes.device == "cuda" and not row["complete"]
        yield CaseResult(
            case="head",
            passed=near and not missing,
            text=f"{'' if row['name'] in ('none', 'padding') else 'and '}{row['name']}: "
            f"{1e3 * row['seconds']:.1f} ms, {row['flops'] / T:,.3g} TFLOP/s, "
            f"{row['peak'] / MIB:,.0f} MiB; loss apart by {row['loss']:.0e}, dx {row['dx']:.0e}, "
            f"dw {row['dw']:.0e}" + ("; a kernel does not work here" if missing else ""),
            numbers=row,
        )


def attention(check: GpuCheck) -> Iterator[CaseResult]:
    """Check that attention at the model's shape runs a fused kernel, and measure its rate."""
    numbers = on_one_rank(check, "attention")
    yield CaseResult(
        case="attention",
        passed=numbers["backend"] != "math",
        text=f"{numbers['backend']}: {numbers['milliseconds']:.3g} ms forward and backward, "
        f"{numbers['flops'] / T:.3g} TFLOP/s; "
        f"{', '.join(name[:60] for name in numbers['kernels'])}",
        numbers=numbers,
    )


def speed(check: GpuCheck) -> Iterator[CaseResult]:
    """Measure our step against a plain GPT-2's, both compiled, in pairs of steps."""
    started, report = time.monotonic(), check.folder / "speed.json"
    arguments = ["-m", "benchmarks.gpu_check.speed", check.sizes.device, str(report)]
    run_program(arguments, check.log("speed"), check.timeout(200))
    numbers = json.loads(report.read_text())
    rates, peaks = numbers["tokens_per_second"], numbers["peak_bytes"]
    yield CaseResult(
        case="speed",
        seconds=time.monotonic() - started,
        text=f"{rates['ours']:,.0f} tokens/s, {numbers['speed']:.3f} x plain GPT-2's "
        f"{rates['bare']:,.0f}; {peaks['ours'] / MIB:,.0f} MiB, {numbers['memory']:.2f} x plain's "
        f"{peaks['bare'] / MIB:,.0f}",
        numbers=numbers,
    )


def profile(check: GpuCheck) -> Iterator[CaseResult]:
    """Profile a training step by kind of kernel."""
    started = time.monotonic()
    numbers = on_one_rank(check, "profile", check.folder / "trace.json", seconds=150)
    step = numbers["seconds"]
    shares = ", ".join(f"{kind} {time / step:.1%}" for kind, time in numbers["kinds"].items())
    yield CaseResult(
        case="profile",
        seconds=time.monotonic() - started,
        text=f"{1e3 * step:.1f} ms a step: {shares}, idle {numbers['idle']:.1%}; attention by "
        f"{numbers['attention']}; MFU {numbers['mfu']:.1%} of the measured "
        f"{numbers['matmul_flops'] / T:.3g} TFLOP/s",
        numbers=numbers,
    )


def large(check: GpuCheck) -> Iterator[CaseResult]:
    """Measure a step of GPT-2 XL."""
    started = time.monotonic()
    numbers = on_one_rank(check, "large", seconds=120)
    yield CaseResult(
        case="large",
        seconds=time.monotonic() - started,
        text=f"{numbers['parameters'] / 1e9:.2f}G parameters: {1e3 * numbers['seconds']:.0f} ms a "
        f"step, {numbers['tokens_per_second']:,.0f} tokens/s, "
        f"{numbers['peak_bytes'] / MIB:,.0f} MiB; MFU {numbers['mfu']:.1%} of the measured "
        f"{numbers['matmul_flops'] / T:.3g} TFLOP/s",
        numbers=numbers,
    )


def cases() -> list[CheckCase]:
    return [
        CheckCase(name="tests", run=tests),
        CheckCase(name="resume", run=resume),
        CheckCase(name="machine", run=machine, alone=True),
        CheckCase(name="matmul", run=matmul, alone=True),
        CheckCase(name="attention", run=attention, alone=True),
        CheckCase(name="head", run=head, alone=True),
        CheckCase(name="large", run=large, alone=True),
        CheckCase(name="speed", run=speed, alone=True),
        CheckCase(name="profile", run=profile, alone=True),
        CheckCase(name="memory", run=memory, alone=True),
    ]
