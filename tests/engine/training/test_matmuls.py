"""The matmul library depends only on processor, shapes and settings, so that equal runs give equal
bits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.checkpoint.load import SavedCheckpoint
from engine.config.fields import accepts
from engine.config.schema import all_settings
from engine.errors import UserError
from engine.estimate.flops import smallest_matmul_flops
from engine.runs.start_candidates import StartOptions
from engine.training.matmuls import MARGIN_FLOPS, MATMULS, choose_matmul
from engine.world.processor import Processor, this_processor
from engine.world.world import World
from models.config import GPTConfig
from tests.support.jobs import checkpoints_of, into_run, run_all

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AMD = Processor(vendor="AuthenticAMD", name="AMD EPYC 9755")
INTEL = Processor(vendor="GenuineIntel", name="Intel(R) Xeon(R) 6975P")
UNKNOWN = Processor(vendor="", name="unknown processor")
# Products of this size round differently in the two libraries
WIDE = ("model.n_embd=256", "model.n_inner=1024", "SEQ_LEN=32", "MAX_STEPS=2")


@pytest.mark.parametrize(
    "processor, capability, flops, expected",
    [
        (AMD, "AVX512", MARGIN_FLOPS, "onednn"),
        (AMD, "AVX512", MARGIN_FLOPS - 1, "torch"),
        (AMD, "AVX2", MARGIN_FLOPS, "torch"),
        (INTEL, "AVX512", MARGIN_FLOPS, "torch"),
        (UNKNOWN, "AVX512", MARGIN_FLOPS, "torch"),
    ],
)
def test_library_is_chosen_by_processor_and_size(processor, capability, flops, expected):
    with (
        patch("engine.training.matmuls.cpu_capability", lambda: capability),
        patch("torch.backends.mkl.is_available", lambda: True),
    ):
        assert choose_matmul(torch.float32, CPU, flops, processor=processor) == expected
        assert choose_matmul(torch.bfloat16, CPU, flops, processor=processor) == "torch"
        assert choose_matmul(torch.float32, CUDA, flops, processor=processor) == "torch"


def test_choice_of_a_library_runs_no_matmul():
    """A choice by timing would make the bits of a run random."""

    def multiply(*tensors):
        raise AssertionError("a product was made")

    with (
        patch.dict(MATMULS, dict.fromkeys(MATMULS, multiply)),
        patch("torch.mm", multiply),
        patch("torch.addmm", multiply),
        patch("torch.Tensor.__matmul__", multiply),
    ):
        assert choose_matmul(torch.float32, CPU, 2**30, processor=AMD) in MATMULS


def test_matmul_setting_selects_the_library():
    for name in MATMULS:
        assert choose_matmul(torch.float32, CPU, 2**30, requested=name, processor=INTEL) == name
    with pytest.raises(UserError, match="matmul='onednn': oneDNN runs on CPUs only"):
        choose_matmul(torch.float32, CUDA, 2**30, requested="onednn")
    with (
        patch("torch.backends.mkldnn.is_available", lambda: False),
        pytest.raises(UserError, match="this torch was built without oneDNN"),
    ):
        choose_matmul(torch.float32, CPU, 2**30, requested="onednn")


def test_matmul_setting_accepts_every_library():
    accepted = accepts(all_settings()["matmul"])
    assert accepted == f"{', '.join(map(repr, MATMULS))} or None"


def test_smallest_matmul_flops_count_the_smaller_projection():
    sizes = GPTConfig(
        n_layer=1, n_head=2, n_embd=32, head_dim=8, n_inner=64, vocab_size=9, block_size=4
    )
    assert smallest_matmul_flops(sizes, 10, 1) == 2 * 10 * 16 * 32  # [10, 16] x [16, 32]
    assert smallest_matmul_flops(replace(sizes, n_inner=8), 10, 4) == 2 * 10 * 32 * 8 // 4


def test_processor_is_read_from_linux(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n\n" * 2)
    assert this_processor(cpuinfo) == Processor(vendor="AuthenticAMD", name="AMD EPYC")
    assert this_processor(tmp_path / "missing") == UNKNOWN


@pytest.mark.parametrize(
    ("runs", "ranks"), [(8, 1), (3, 4), pytest.param(8, 4, marks=pytest.mark.slow)]
)
def test_equal_runs_write_one_weight_file(tmp_path, runs, ranks):
    """Half of them set deterministic=True, which has no effect on a CPU."""
    layout = ("TENSOR_PARALLEL=4", "MODE=2d") if ranks == 4 else ()
    jobs = [
        into_run(tmp_path / f"{number}", *WIDE, *layout, f"deterministic={number % 2 == 1}")
        for number in range(runs)
    ]
    for ended in run_all(jobs, ranks):
        assert {rank.error for rank in ended} == {""}, ended[0].err
    files = {(job.folder / "run" / "model.safetensors").read_bytes() for job in jobs}
    assert len(files) == 1


OPERATORS = "operators"


class Names(TorchDispatchMode):
    """Records the names of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operators.add(str(func))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def operators_recorded(world: World) -> Iterator[None]:
    """Write the names of the operators of a run to a file in its folder."""
    with Names() as names:
        yield
    Path(OPERATORS).write_text("\n".join(names.operators))


def test_forced_library_is_printed_recorded_and_resumed(tmp_path):
    jobs = [
        into_run(tmp_path / name, *WIDE, f"matmul={name}", planted=operators_recorded)
        for name in MATMULS
    ]
    longer = [(*job.overrides, "MAX_STEPS=4") for job in jobs]
    resume = StartOptions(resume="run")
    on = [replace(jobs[i], overrides=longer[i], options=resume) for i in range(len(jobs))]
    whole = [into_run(tmp_path / f"{name}-whole", *longer[i]) for i, name in enumerate(MATMULS)]
    ended = run_all([*jobs, *on, *whole])
    assert [rank.error for (rank,) in ended] == [""] * len(ended)
    for name, (first,), (second,) in zip(MATMULS, ended, ended[len(MATMULS) :], strict=False):
        assert f"matmul      {name}, on " in first.out
        assert f"matmul      {name}, on " in second.out
        folder = tmp_path / name
        operators = (folder / OPERATORS).read_text().split()
        assert ("mkldnn._linear_pointwise.default" in operators) == (name == "onednn")
        assert json.loads((folder / "run" / "environment.json").read_text())["matmul"] == name
        assert SavedCheckpoint(checkpoints_of(folder).folder(2)).training.matmul == name
        resumed = (folder / "run" / "model.safetensors").read_bytes()
        assert resumed == (tmp_path / f"{name}-whole" / "run" / "model.safetensors").read_bytes()
