"""The tables of a report: the numbers of the estimate, within the width of the terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from engine.estimate.estimate import estimate
from engine.estimate.result import CommVolume, Memory
from launch.validate.alternatives import Alternative
from launch.validate.inspection import EstimatedPlan
from launch.validate.report import _three_digits, print_remarks, print_report
from tests.launch.validate.support import CONFIG, GIB, case, chunked, made_up, plan, write

EVERYTHING = Memory(
    parameters=5 * GIB,
    gradients=6 * GIB,
    optimizer=12 * GIB,
    activations=3 * GIB // 2,
    logits=GIB // 4,
    buffers=GIB // 2,
    host=100 * GIB,
)


def report_lines(one: EstimatedPlan, width: int = 80) -> list[str]:
    file = io.StringIO()
    print_report(one, Console(file=file, width=width))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def below(title: str, lines: list[str]) -> list[list[str]]:
    """Return the cells of the table with this title, the header first."""
    start = lines.index(title) + 1
    rows = lines[start : lines.index("", start)]
    return [row.split() for row in rows]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_memory_table_has_one_unit_and_the_share_of_the_gpu(config, width):
    one = case(config, made_up(EVERYTHING), gpu_memory=80 * GIB)
    lines = report_lines(one, width)
    head, row = below("memory of a GPU, GiB", lines)
    assert " ".join(head) == (
        "stage layers weights grads optim. activ. logits buffers total host of 80 GiB"
    )
    numbers = ["5.00", "6.00", "12.0", "1.50", "0.25", "0.50", "25.2", "100"]
    assert row[:11] == ["0", "0-1", *numbers, "32%"]
    assert max(map(len, lines)) <= width


def test_memory_table_shows_bytes_offloaded_to_host_and_disk(config):
    found = made_up(Memory(parameters=5 * GIB, buffers=GIB, host=99 * GIB, nvme=1000 * GIB))
    head, row = below(
        "memory of a GPU, GiB", report_lines(case(config, found, gpu_memory=80 * GIB))
    )
    assert head[2:-3] == ["weights", "buffers", "total", "host", "NVMe"]
    assert row[2:7] == ["5.00", "1.00", "6.00", "99.0", "1,000"]


def test_small_model_is_shown_in_mebibytes_without_empty_columns(config):
    head, row = below(
        "memory of a GPU, MiB", report_lines(case(config, made_up(Memory(parameters=3 << 20))))
    )
    assert head == ["stage", "layers", "weights", "total"]
    assert row == ["0", "0-1", "3.00", "3.00"]


def test_stages_of_equal_memory_share_a_row(config):
    same, other = Memory(parameters=GIB), Memory(parameters=2 * GIB)
    lines = report_lines(case(config, made_up(other, same, same, same, other), "PIPELINE=1"))
    assert [row[:2] for row in below("memory of a GPU, GiB", lines)[1:]] == [
        ["0", "0-1"],
        ["1-3", "2-7"],
        ["4", "8-9"],
    ]


def test_many_stages_are_reduced_to_the_ends_and_the_fullest(config):
    sizes = [Memory(parameters=GIB, activations=n << 20) for n in (*range(20), 99, *range(20, 40))]
    lines = report_lines(case(config, made_up(*sizes)))
    shown = [row[0] for row in below("memory of a GPU, GiB", lines)[1:]]
    assert shown == [*"01234", "...", "20", "...", "36", "37", "38", "39", "40"]


def test_layers_of_chunks_fit_the_width(config):
    ranges = tuple(range(n, n + 2) for n in range(0, 96, 8))
    one = case(config, chunked(made_up(EVERYTHING), ranges), gpu_memory=80 * GIB)
    lines = report_lines(one)
    assert max(map(len, lines)) <= 80
    assert {"0-1", "88-89"} <= set(" ".join(lines).split())


@pytest.mark.parametrize(
    ("taken", "percent", "colour"),
    [(0.5, "50%", "32"), (0.95, "95%", "33"), (1.0, "100%", "33"), (1.001, "101%", "31")],
)
def test_share_of_gpu_memory_determines_the_colour(config, taken, percent, colour):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard")
    found = made_up(Memory(parameters=round(taken * 1000 * GIB)))
    print_report(case(config, found, gpu_memory=1000 * GIB), console)
    assert re.search(rf"\x1b\[{colour}m *{percent} ━", file.getvalue())


def test_traffic_table_lists_calls_and_bytes(config):
    sent = (
        CommVolume(axis="t", collective="all_gather", calls=1920, bytes=3 * GIB // 2),
        CommVolume(axis="data", collective="reduce_scatter", calls=2, bytes=512),
    )
    assert below(
        "sent by a GPU in a step", report_lines(case(config, made_up(EVERYTHING, sent=sent)))
    ) == [
        ["axis", "collective", "calls", "bytes"],
        ["t", "all_gather", "1,920", "1.5", "GiB"],
        ["data", "reduce_scatter", "2", "512", "B"],
    ]


def test_alternatives_table_lists_changes_that_fit(config):
    others = (
        Alternative(
            overrides=("model.checkpoint=True",),
            plan=plan(config),
            estimate=made_up(Memory(parameters=GIB)),
        ),
        Alternative(
            overrides=("TENSOR_PARALLEL=2", "MODE=1d"),
            plan=plan(config, "TENSOR_PARALLEL=2", "MODE=1d"),
            estimate=made_up(Memory(parameters=GIB // 2)),
        ),
    )
    one = replace(case(config, made_up(EVERYTHING), gpu_memory=2 * GIB), alternatives=others)
    assert below("what would fit", report_lines(one)) == [
        ["with", "of", "a", "GPU", "GPUs"],
        ["model.checkpoint=True", "1", "GiB", "1"],
        ["TENSOR_PARALLEL=2", "MODE=1d", "--gpus", "2", "512", "MiB", "2"],
    ]


def test_alternatives_table_shows_host_memory(config):
    other = Alternative(
        overrides=("zero.offload=cpu",),
        plan=plan(config),
        estimate=made_up(Memory(parameters=GIB, host=3 * GIB)),
    )
    one = replace(case(config, made_up(EVERYTHING), gpu_memory=2 * GIB), alternatives=(other,))
    assert below("what would fit", report_lines(one)) == [
        ["with", "of", "a", "GPU", "GPUs", "host"],
        ["zero.offload=cpu", "1", "GiB", "1", "3", "GiB"],
    ]


def test_nearest_misses_are_listed_with_their_samples(config):
    miss = Alternative(
        overrides=("BATCH_SIZE=4",),
        plan=plan(config, "BATCH_SIZE=4"),
        estimate=made_up(Memory(parameters=3 * GIB)),
    )
    one = replace(case(config, made_up(EVERYTHING), gpu_memory=2 * GIB), nearest=(miss,))
    assert below("nothing fits; nearest", report_lines(one)) == [
        ["with", "of", "a", "GPU", "GPUs", "samples"],
        ["BATCH_SIZE=4", "3", "GiB", "1", "4"],
    ]


def test_summary_has_parameters_and_bubble(config):
    found = made_up(EVERYTHING, EVERYTHING)
    lines = report_lines(case(config, found, "PIPELINE=2"))
    assert "parameters  124,439,808, at most 62,219,904 on a GPU" in lines
    assert "bubble      25.0% of a step (1f1b)" in lines
    alone = report_lines(case(config, made_up(EVERYTHING)))
    assert "parameters  124,439,808" in alone
    assert not any(line.startswith("bubble") for line in alone)


def test_summary_has_attention_of_samples_on_several_gpus(config):
    shared = case(config, made_up(EVERYTHING), "TENSOR_PARALLEL=4", "MODE=2d", "BATCH_SIZE=2")
    text = " ".join(report_lines(shared))
    assert "attention samples on 2 GPUs, which gather keys and values" in " ".join(text.split())
    whole = report_lines(case(config, made_up(EVERYTHING)))
    assert not any(line.startswith("attention") for line in whole)


def test_memory_parts_of_a_real_estimate_sum_to_the_total(tmp_path):
    path = write(tmp_path, CONFIG + "\nPIPELINE = 2\nTENSOR_PARALLEL = 4\nMODE = '2d'\n")
    found = estimate(plan(path))
    rows = below("memory of a GPU, MiB", report_lines(case(path, found)))
    for row, stage in zip(rows[1:], found.stages, strict=True):
        *parts, total = map(float, row[2:])
        assert sum(parts) == pytest.approx(total, abs=0.01 * len(parts))
        assert total == pytest.approx(stage.memory.total / 2**20, abs=0.01)


def test_long_remark_is_one_line(config):
    file = io.StringIO()
    said = replace(plan(config), warnings=("a.py:1: " + "slow " * 40,), notes=("a.py:2: [so]",))
    print_remarks(said, Console(file=file, width=40))
    assert file.getvalue().splitlines() == [
        "warning: a.py:1: " + "slow " * 40,
        "note: a.py:2: [so]",
    ]


def test_column_numbers_have_three_digits():
    found = [_three_digits(n) for n in (0, 0.004, 0.491, 9.99, 9.996, 12, 99.94, 99.96, 1020)]
    assert found == ["0", "0.00", "0.49", "9.99", "10.0", "12.0", "99.9", "100", "1,020"]
