"""Training in any layout, compared with the same training in one process."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from tests.support.training import TrainingCase, TrainingResult, assert_same, train_all
from tests.support.worlds import TIMEOUT_SECONDS, run_world

TOLERANCE = {
    torch.float32: 1e-5,
    torch.float64: 1e-13,
    torch.bfloat16: 5e-2,
    torch.float16: 5e-3,
}
"""Of every tensor. Half precision: a cut run is as far from the serial one as that is from float32,
up to 0.024 of a bias in bf16 and 0.003 in fp16, which has three bits more."""


class Parity:
    """One world of each size trains all cases of that size when the first of them is checked."""

    def __init__(self, runs: Iterable[TrainingCase], *, timeout: float = TIMEOUT_SECONDS) -> None:
        self.runs, self.timeout = list(dict.fromkeys(runs)), timeout
        self.trained = cache(self._trained)

    def _trained(self, world: int) -> dict[TrainingCase, TrainingResult]:
        runs = [run for run in self.runs if run.layout.gpus == world]
        if world == 1:
            runs = list(dict.fromkeys([*runs, *(run.alone for run in self.runs)]))
        results = run_world(world, train_all, runs, timeout=self.timeout)
        return dict(zip(runs, results[0], strict=True))

    def check(self, run: TrainingCase) -> None:
        """Check that losses, norms and parameters of ``run`` equal those of one process."""
        result, reference = self.trained(run.layout.gpus)[run], self.trained(1)[run.alone]
        assert_same(result, reference, TOLERANCE[run.compute or run.dtype])
