"""GLOBAL_BATCH_SIZE: batch and accumulation follow from it and the number of ranks."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.plan import Plan, make_plan

BASE = """
SEQ_LEN = 64
MAX_STEPS = 9
model = dict(n_layer=4, n_head=4, n_embd=64)
"""


def plan(folder: Path, text: str, *overrides: str, gpus: int | None = None) -> Plan:
    path = folder / "config.py"
    path.write_text(text + BASE)
    return make_plan(path, gpus=gpus, overrides=overrides, environ={})


def problem(folder: Path, text: str, *overrides: str, gpus: int | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(folder, text, *overrides, gpus=gpus)
    assert len(caught.value.problems) == 1
    return str(caught.value.problems[0].message)


def factors(made: Plan) -> tuple[int, int, int]:
    settings = made.settings
    return settings.batch_size, settings.gradient_accumulation, made.layout.data


@pytest.mark.parametrize(
    ("given", "gpus", "expected"),
    [
        ("", None, (24, 1, 1)),
        ("", 8, (3, 1, 8)),
        ("TENSOR_PARALLEL = 2; MODE = '1d'", 8, (6, 1, 4)),
        ("PIPELINE = 2; NUM_MICRO_BATCHES = 2", 8, (6, 1, 4)),
        ("BATCH_SIZE = 2", None, (2, 12, 1)),
        ("BATCH_SIZE = 2", 6, (2, 2, 6)),
        ("gradient_accumulation = 4", 3, (2, 4, 3)),
        ("BATCH_SIZE = 2; gradient_accumulation = 3", 4, (2, 3, 4)),
        ("BATCH_SIZE = 2; gradient_accumulation = 3", None, (2, 3, 4)),
    ],
)
def test_the_global_batch_is_divided_over_ranks_and_rounds(tmp_path, given, gpus, expected):
    made = plan(tmp_path, f"GLOBAL_BATCH_SIZE = 24\n{given}\n", gpus=gpus)
    assert factors(made) == expected
    assert made.global_batch == 24


def test_every_number_of_ranks_either_keeps_the_update_or_is_rejected(tmp_path):
    """Compare with the definition of the product for all divisions of 24 samples."""
    for gpus, batch in product(range(1, 9), range(1, 9)):
        text = f"GLOBAL_BATCH_SIZE = 24\nBATCH_SIZE = {batch}\n"
        if 24 % (gpus * batch):
            message = problem(tmp_path, text, gpus=gpus)
            assert "is not a multiple of" in message
            fitting = [n for n in range(1, batch) if 24 % (gpus * n) == 0]
            remedy = f"; or set BATCH_SIZE={max(fitting)}" if fitting else ""
            assert message.partition("; or")[1:] == remedy.partition("; or")[1:]
        else:
            assert factors(plan(tmp_path, text, gpus=gpus)) == (batch, 24 // gpus // batch, gpus)


@pytest.mark.parametrize(
    ("given", "gpus", "message"),
    [
        (
            "BATCH_SIZE = 8",
            6,
            "GLOBAL_BATCH_SIZE=100 is not a multiple of BATCH_SIZE=8 x 6 data-parallel ranks = 48; "
            "nearest: 96, 144",
        ),
        (
            "",
            8,
            "GLOBAL_BATCH_SIZE=100 is not a multiple of 8 data-parallel ranks; nearest: 96, 104",
        ),
        (
            "gradient_accumulation = 3",
            1,
            "GLOBAL_BATCH_SIZE=100 is not a multiple of gradient_accumulation=3; nearest: 99, 102",
        ),
        (
            "PIPELINE = 2; NUM_MICRO_BATCHES = 8",
            4,
            "GLOBAL_BATCH_SIZE=100 is not a multiple of NUM_MICRO_BATCHES=8 x 2 data-parallel "
            "ranks = 16; nearest: 96, 112",
        ),
        (
            "BATCH_SIZE = 8; gradient_accumulation = 2",
            4,
            "GLOBAL_BATCH_SIZE=100 differs from BATCH_SIZE=8 x gradient_accumulation=2 x 4 "
            "data-parallel ranks = 64; correct one of them, or remove BATCH_SIZE or "
            "gradient_accumulation, which then follows",
        ),
        ("GLOBAL_BATCH_SIZE = 0", 1, "GLOBAL_BATCH_SIZE=0 must be int >= 1 or None"),
        ("TENSOR_PARALLEL = 0", 4, "TENSOR_PARALLEL=0 must be int >= 1 and <= 65536"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_rejected_with_one_message(
    tmp_path, given, gpus, message
):
    assert problem(tmp_path, f"GLOBAL_BATCH_SIZE = 100\n{given}\n", gpus=gpus) == message


@pytest.mark.parametrize(
    ("file", "overrides", "expected"),
    [
        ("GLOBAL_BATCH_SIZE = 8; BATCH_SIZE = 4", ["BATCH_SIZE=2"], (2, 4, 1)),
        ("BATCH_SIZE = 4; gradient_accumulation = 2", ["GLOBAL_BATCH_SIZE=32"], (4, 8, 1)),
        (
            "GLOBAL_BATCH_SIZE = 8; BATCH_SIZE = 4; gradient_accumulation = 2",
            ["BATCH_SIZE=1"],
            (1, 8, 1),
        ),
        (
            "GLOBAL_BATCH_SIZE = 8; BATCH_SIZE = 4; gradient_accumulation = 2",
            ["gradient_accumulation=8"],
            (1, 8, 1),
        ),
        ("GLOBAL_BATCH_SIZE = 8; BATCH_SIZE = 4", ["GLOBAL_BATCH_SIZE=None"], (4, 1, 1)),
    ],
)
def test_the_command_line_outranks_the_factors_of_the_file(tmp_path, file, overrides, expected):
    assert factors(plan(tmp_path, f"{file}\n", *overrides, gpus=1)) == expected


def test_batch_factors_of_equal_precedence_must_agree(tmp_path):
    text = "GLOBAL_BATCH_SIZE = 8\n"
    message = problem(tmp_path, text, "BATCH_SIZE=3", "gradient_accumulation=2", gpus=1)
    assert message.startswith("GLOBAL_BATCH_SIZE=8 differs from BATCH_SIZE=3")
