"""The summary of a plan has the numbers of the plan."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from engine.formatting import format_count
from engine.plan import Plan, make_plan
from engine.runs.plan_summary import plan_remarks, plan_summary, summary_table

CONFIG = """
BATCH_SIZE = 6
SEQ_LEN = 32
NUM_MICRO_BATCHES = 2
TENSOR_PARALLEL = 4
MODE = '2d'
MAX_STEPS = 10
gradient_accumulation = 3
model = dict(n_layer=2, n_head=4, n_embd=64, vocab_size=1000)
data = dict(type="synthetic")
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "gpt.py").write_text(CONFIG)
    return make_plan(tmp_path / "gpt.py", gpus=8, environ={})


def test_the_summary_has_the_numbers_of_the_plan(plan):
    lines = plan_summary(plan)
    assert lines["model"] == "2 layers, 4 heads of 16, width 64, vocabulary 1,000"
    assert lines["layout"] == "tensor 4 (2d: r=2 c=2) x pipeline 1 x data 2 = 8 processes"
    assert lines["batch"] == (
        "6 samples x data 2 x accumulation 3 = 36 samples of 32 tokens per step, "
        "in micro-batches of 3"
    )
    # 6 x (2 x (4 x 64^2 + 2 x 64 x 256) + 64 x 1000) + 12 x 2 x 64 x 32 FLOPs a token
    flops = 6 * (2 * 49152 + 64000) + 49152
    assert lines["work"] == (
        f"1,152 tokens and {format_count(1152 * flops)}FLOPs per step, "
        "1.02 MFLOPs per token; float32"
    )


def test_all_warnings_and_notes_are_remarks(plan):
    said = replace(plan, warnings=("a.py:1: slow",), notes=("a.py:2: so",))
    assert plan_remarks(said) == ["warning: a.py:1: slow", "note: a.py:2: so"]


def test_a_table_is_wrapped_between_words_on_a_narrow_terminal():
    file = io.StringIO()
    Console(file=file, width=30).print(
        summary_table({"model": "two layers and [bold]four heads, wide"})
    )
    assert len(file.getvalue().splitlines()) > 1
    assert "[bold]four" in file.getvalue()
