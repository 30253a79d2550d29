"""The estimate compared with published formulas."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import discover
from engine.config.sections.optimizer import OptimizerSettings
from engine.estimate.estimate import estimate
from engine.estimate.result import Memory
from engine.optim.parameter_groups import NamedParameter
from engine.optim.registry import build_optimizer, states_of
from engine.plan import make_plan
from models.presets import PRESETS
from tests.engine.estimate.plans import GPT2, SMALL, plan
from tests.support.call_count import counted

ROOT = Path(__file__).parents[3]
FLOAT32, BF16 = 4, 2


def model(preset: str, **changes: Any) -> dict[str, Any]:
    result = PRESETS[preset]
    sizes = {name: getattr(result, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    return {"block_size": result.block_size or 1024, **sizes, **changes}


@pytest.mark.parametrize(
    ("preset", "published"),
    [  # transformers' own counts of its checkpoints
        ("gpt2_small", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
    ],
)
def test_parameters_equal_the_published_count(preset: str, published: int) -> None:
    result = estimate(plan(model=model(preset)), device="cpu")
    assert result.parameters == result.parameters_per_rank == published


def test_parameters_of_all_ranks_add_up_to_the_model() -> None:
    """Tensors that are not sharded, padding of the vocabulary and the copy of a tied table are
    exceptions: they count more than once."""
    whole = estimate(plan(model=GPT2), device="cpu")
    cut = estimate(
        plan(model=GPT2, mode="1d", tensor=2, pipeline=3, num_micro_batches=4), device="cpu"
    )
    twice = 12 * 6 * 768 + 2 * 768 + 1024 * 768  # norms and biases of *down* layers, positions
    padded = (50_258 + (50_258 - 50_257)) * 768
    assert 2 * sum(stage.parameters for stage in cut.stages) == whole.parameters + twice + padded


def more_by_a_layer(kind: str, **settings: Any) -> int:
    """Return the bytes of activations that one more layer adds."""
    sizes = GPT2 | settings.pop("model", {})
    two, three = (
        estimate(plan(model=sizes | {"n_layer": n}, **settings)).fullest.memory for n in (2, 3)
    )
    difference: int = getattr(three, kind) - getattr(two, kind)
    return difference


@pytest.mark.parametrize(("mode", "tensor"), [("serial", 1), ("1d", 4), ("2d", 4), ("3d", 8)])
def test_activations_of_a_layer_equal_the_formula(mode: str, tensor: int) -> None:
    """Korthikanti et al. (2022), equations 1 and 4: of 34 s b h bytes a layer, 2 are masks of
    dropouts, of which there are none here; the rest is cut over all ranks. Log-sum-exps and the
    norms' statistics are less than half a percent."""
    result = more_by_a_layer(
        "activations", mode=mode, tensor=tensor, precision="bf16", loss_chunk=64
    )
    assert result == pytest.approx(32 * 4 * 1024 * 768 / tensor, rel=0.005)


def test_checkpointed_layer_saves_only_its_input() -> None:
    kept = more_by_a_layer("activations", model={"checkpoint": True}, num_micro_batches=1)
    assert kept == FLOAT32 * 4 * 1024 * 768


@pytest.mark.parametrize(("schedule", "held"), [("gpipe", [8] * 4), ("1f1b", [4, 3, 2, 1])])
def test_micro_batches_in_flight_equal_those_of_the_schedule(
    schedule: str, held: list[int]
) -> None:
    """GPipe has all in flight (Huang et al. 2019), 1F1B p - rank (Narayanan et al. 2019)."""
    sizes = SMALL | {"n_layer": 8, "n_embd": 256}
    some: dict[str, Any] = {"batch_size": 8, "num_micro_batches": 8, "precision": "bf16"}
    stages = estimate(plan(model=sizes, pipeline=4, schedule=schedule, **some)).stages
    block = 16 * 256 * 32 * BF16
    for stage, number in zip(stages, held, strict=True):
        assert stage.memory.activations / (2 * block) == pytest.approx(number, rel=0.12)


def bytes_over(axis: str, **settings: Any) -> int:
    result = estimate(plan(**settings))
    return sum(sent.bytes for sent in result.traffic if sent.axis == axis)


@pytest.mark.parametrize("data", [2, 8])
@pytest.mark.parametrize(
    ("stage", "times"),
    [(0, 2), (1, 2), (2, 2), (3, 3)],
)
def test_data_parallel_volume_equals_the_formula(data: int, stage: int, times: int) -> None:
    """2 (N - 1) / N of the gradients; in stage 3, 3 (N - 1) / N of the parameters (Rajbhandari et
    al. 2020, section 7)."""
    untied = SMALL | {"n_embd": 512, "vocab_size": 8, "tie_embeddings": False}
    result = estimate(plan(model=untied, data=data, zero={"stage": stage}))
    sent = bytes_over("data", model=untied, data=data, zero={"stage": stage})
    share = (data - 1) / data * FLOAT32 * result.parameters
    assert sent == pytest.approx(times * share, rel=0.01)


def test_pipeline_sends_activations_and_their_gradients() -> None:
    """A middle stage sends [T, C] forward and backward for each micro-batch; the first and last
    stage also exchange a tied table's float32 gradient."""
    some: dict[str, Any] = {"pipeline": 4, "num_micro_batches": 4, "precision": "bf16"}
    sample = 32 * 64 * BF16
    untied = SMALL | {"tie_embeddings": False}
    assert bytes_over("pipeline", model=untied, **some) == 2 * 4 * sample
    assert bytes_over("pipeline", **some) == 4 * sample + 512 * 64 * FLOAT32


def test_tensor_parallel_volume_equals_the_formula() -> None:
    """Korthikanti et al. (2022, section 4.2.2): as many all-gathers and reduce-scatters of the
    sequence as four all-reduces move a layer; here one all-gather more for each *up* layer's dw."""
    deep, shallow = (
        bytes_over("t", mode="1d", tensor=4, model=SMALL | {"n_layer": n}) for n in (5, 4)
    )
    piece = 4 * 32 * 64 * FLOAT32 // 4
    gathers, scatters = 2 + 2 + 2, 2 + 2
    vectors = 2 * 3 * 6 * 64 * FLOAT32 // 4  # norms' and *down* biases' gradients, all-reduced
    assert deep - shallow == 3 * piece * (gathers + scatters) + vectors


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_training_state_equals_the_formula(stage: int, ranks: int) -> None:
    """16 bytes per parameter for Adam in mixed precision, sharded (Rajbhandari et al. 2020). The
    16-bit copies of stages 1 and 2 exist within a step, the unsharded gradients of stage 1 until
    its end."""
    wide = SMALL | {"n_embd": 512}
    result = estimate(plan(model=wide, data=ranks, zero={"stage": stage}, precision="bf16"))
    after = result.fullest.after_step
    pieces = result.parameters / (ranks if stage else 1)
    assert after.total == pytest.approx(16 * pieces, rel=0.03)
    copies = result.fullest.memory.parameters - after.parameters
    assert copies == pytest.approx(BF16 * result.parameters if stage in (1, 2) else 0, rel=0.02)


def test_offloading_leaves_little_on_the_device() -> None:
    wide = SMALL | {"n_embd": 512}
    host = {"stage": 3, "offload": "cpu", "offload_params": "cpu"}
    disk = {"stage": 3, "offload": "nvme", "nvme_path": "/", "nvme_buffer": 2**20}
    result = {
        name: estimate(plan(model=wide, zero=zero)).fullest.after_step
        for name, zero in (("device", {"stage": 3}), ("host", host), ("disk", disk))
    }
    all_bytes = result["device"].total
    for name in ("host", "disk"):
        assert result[name].total < 0.02 * all_bytes
    assert result["host"].host + result["host"].total == all_bytes
    assert result["disk"].nvme == pytest.approx(all_bytes / 2, rel=0.02)
    assert result["disk"].host == pytest.approx(all_bytes / 2 + 2**20, rel=0.02)
    assert estimate(plan(model=wide, zero=host), device="cpu").fullest.after_step.host == 0


@pytest.mark.parametrize(("p", "m"), list(product((1, 2, 4, 8), (8, 24))))
def test_bubble_equals_the_formula(p: int, m: int) -> None:
    """(p - 1) / (c m + p - 1) (Narayanan et al. 2021, section 2.2); ZB-H1 (Qi et al. 2023)."""

    def bubble(schedule: str, chunks: int = 1) -> float:
        sizes = SMALL | {"n_layer": 2 * p, "num_chunks": chunks}
        some: dict[str, Any] = {"schedule": schedule, "batch_size": m, "num_micro_batches": m}
        return estimate(plan(model=sizes, pipeline=p, **some)).bubble

    for schedule in ("gpipe", "1f1b"):
        assert bubble(schedule) == pytest.approx((p - 1) / (m + p - 1))
    assert bubble("interleaved", chunks=2) == pytest.approx((p - 1) / (2 * m + p - 1))
    assert bubble("zero_bubble") == pytest.approx((p - 1) / (3 * m + p - 1))


@pytest.mark.parametrize("name", discover.module_names("engine.optim.optimizers"))
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_optimizer_has_the_declared_number_of_states(name: str, momentum: float) -> None:
    parameter = torch.nn.Parameter(torch.ones(8, 8))
    settings = OptimizerSettings(type=name, momentum=momentum)
    optimizer = build_optimizer(settings, [NamedParameter("weight", parameter, "linear")])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = [state for state in optimizer.state[parameter].values() if state is not None]
    assert sum(state.shape == parameter.shape for state in kept) == states_of(settings)


def test_total_memory_is_the_sum_of_its_parts() -> None:
    parts = Memory(
        parameters=1,
        gradients=2,
        optimizer=4,
        activations=8,
        logits=16,
        buffers=32,
        host=64,
        nvme=1,
    )
    assert parts.total == 63


def test_estimate_of_128_gpus_and_192_micro_batches_is_little_work() -> None:
    large = make_plan(ROOT / "gpt_configs/gpt3_pp1d.py", gpus=128, environ={})
    with counted() as calls:
        result = estimate(large)
    assert calls.number < 3_000_000
    assert len(result.stages) == 32


def test_estimate_does_not_import_torch() -> None:
    program = (
        "import sys; from engine.plan import make_plan; from engine.estimate.estimate import "
        "estimate; estimate(make_plan('gpt_configs/gpt2_pp1d.py', gpus=None, environ={})); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
