"""Training with states and weights on a disk equals training in one process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from tests.support.parity import Parity
from tests.support.training import TrainingCase


def runs() -> Iterator[TrainingCase]:
    """Yield every ZeRO stage on 1 and 2 data ranks in both dtypes. Then weights on the disk, which
    need stage 3, with all options that read a weight several times: activation checkpointing,
    accumulation, kept gathers, pipelines, half precision."""
    types = (torch.float32, torch.float64)
    for stage, data, dtype in product((1, 2, 3), (1, 2), types):
        yield TrainingCase(zero=stage, data=data, dtype=dtype, disk="states")
    for data, dtype in product((1, 2), types):
        yield TrainingCase(zero=3, data=data, dtype=dtype, disk="weights")
    common: dict[str, Any] = {"zero": 3, "disk": "weights", "dtype": torch.float64}
    yield TrainingCase(**common, data=2, accumulation=2, checkpoint=True, tied=False)
    yield TrainingCase(**common, keep_gathers=True, checkpoint="selective")
    yield TrainingCase(**common, mode="1d", tensor=2, micro_batches=2)
    yield TrainingCase(**common, pipeline=2, micro_batches=2, schedule="1f1b")
    yield TrainingCase(**common, mode="2.5d", tensor=2, depth=2, zero_depth=True)
    yield TrainingCase(**common | {"dtype": torch.float32}, compute=torch.bfloat16)
    yield TrainingCase(**common | {"dtype": torch.float32}, compute=torch.float16)


RUNS = list(runs())
PARITY = Parity(RUNS)


@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_offloading_to_a_disk_trains_the_same_model(run: TrainingCase) -> None:
    PARITY.check(run)
