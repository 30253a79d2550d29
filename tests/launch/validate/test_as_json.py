"""--json, compared with its schema and with the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from engine.estimate.estimate import estimate
from launch.validate.as_json import VERSION, as_json
from launch.validate.inspection import inspect_config
from tests.launch.validate.support import CONFIG, plan, request, write

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/validate.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SHIPPED = sorted(Path(__file__).parents[3].glob("gpt_configs/*.py"))
PIPELINED = """
PIPELINE = 2
TENSOR_PARALLEL = 8
MODE = '2.5d'
DEPTH = 2
model = dict(n_layer=8, n_head=4, n_embd=64, vocab_size=1001)
"""


def report(path: Path, *overrides: str, gpus: int | None = None, memory: int | None = None) -> Any:
    found = json.loads(as_json([inspect_config(request(path, *overrides, gpus=gpus), memory)]))
    VALIDATOR.validate(found)
    (config,) = found["configs"]
    return config


def test_schema_is_valid_and_of_this_version():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["version"]["const"] == VERSION


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_reports_of_shipped_configs_match_the_schema(path):
    assert report(path)["accepted"]


def test_accepted_config_has_plan_and_estimate(tmp_path):
    path = write(tmp_path, CONFIG + PIPELINED)
    config, expected = report(path, gpus=32), plan(path, gpus=32)
    found = estimate(expected)
    assert config["source"] == str(path)
    assert config["plan"]["gpus"] == 32
    assert config["plan"]["layout"] == {
        "data": 2,
        "pipeline": 2,
        "tensor": 8,
        "mode": "2.5d",
        "axes": {"d": 2, "r": 2, "c": 2},
    }
    assert list(config["plan"]["layout"]["axes"]) == list(expected.layout.tensor_axes)
    assert config["plan"]["batch"] == {
        "per_rank": 8,
        "micro_batches": 2,
        "per_micro_batch": 4,
        "padded_micro_batch": 4,
        "rows_per_micro_batch": 4 * 64,
        "gpus_per_sample": 1,
        "attention_idle": 0,
        "accumulation": 1,
        "samples_per_step": 16,
        "tokens_per_step": 16 * 64,
    }
    assert config["plan"]["settings"]["model"]["n_layer"] == 8
    assert config["plan"]["fingerprint"] == expected.fingerprint
    assert config["warnings"] == list(expected.warnings) != []
    assert config["notes"] == list(expected.notes) != []
    told_estimate = config["estimate"]
    assert told_estimate["parameters"]["total"] == found.parameters
    assert told_estimate["parameters"]["per_gpu"] == found.parameters_per_rank
    assert told_estimate["flops"]["per_step"] == found.flops_per_token * 16 * 64
    assert told_estimate["bubble"] == found.bubble
    assert [one["layers"] for one in told_estimate["memory"]["stages"]] == [[[0, 4]], [[4, 8]]]
    for one, stage in zip(told_estimate["memory"]["stages"], found.stages, strict=True):
        parts = dict(one["bytes"])
        assert parts.pop("total") == stage.memory.total
        assert sum(parts.values()) - parts["host"] - parts["nvme"] == stage.memory.total
    assert [sent["bytes"] for sent in told_estimate["sent"]] == [s.bytes for s in found.traffic]
    assert told_estimate["memory"]["fits"] is None


def test_rejected_config_has_problems_and_no_plan(tmp_path):
    config = report(write(tmp_path, CONFIG), "TENSOR_PARALLEL=6", "MODE=2d", "foo=1")
    assert (config["accepted"], config["plan"], config["estimate"]) == (False, None, None)
    assert len(config["problems"]) == 2


def test_config_that_does_not_fit_has_plan_problems_and_alternatives(tmp_path):
    path = write(tmp_path, CONFIG)
    size = estimate(plan(path)).fullest.memory.total
    config = report(path, memory=size - 1)
    assert not config["accepted"]
    assert config["plan"] is not None
    assert config["estimate"]["memory"]["fits"] is False
    assert config["estimate"]["memory"]["gpu"] == size - 1
    assert config["estimate"]["alternatives"]
    assert all(other["bytes"] < size for other in config["estimate"]["alternatives"])
    assert config["estimate"]["nearest"] == []
    hopeless = report(path, memory=2**10)["estimate"]
    assert hopeless["alternatives"] == []
    assert [miss["bytes"] > 2**10 for miss in hopeless["nearest"]] == [True] * 3
    fitting = report(path, memory=size)
    assert fitting["accepted"]
    assert fitting["estimate"]["memory"]["fits"] is True
    assert fitting["estimate"]["alternatives"] == []


@pytest.mark.parametrize(
    "break_it",
    [
        lambda config: config.update(accepted=True),
        lambda config: config.update(extra=1),
        lambda config: config.pop("notes"),
        lambda config: config.update(problems=[]),
    ],
)
def test_schema_rejects_broken_reports(tmp_path, break_it):
    found = json.loads(as_json([inspect_config(request(write(tmp_path, "BATCH_SIZE = 0")))]))
    VALIDATOR.validate(found)
    break_it(found["configs"][0])
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(found)
