"""python -m models.gpt, the check with a batch of random ids."""

from __future__ import annotations

import math
import runpy

import pytest


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_dummy_batch_has_logits_a_loss_of_a_uniform_guess_and_gradients(capsys):
    runpy.run_module("models.gpt", run_name="__main__")
    shape, loss, gradients = capsys.readouterr().out.splitlines()
    assert shape == "logits [8, 512, 666]"
    value = float(loss.split()[0].removeprefix("loss="))
    assert value == pytest.approx(math.log(666), abs=0.05)
    with_gradient, of, *_ = gradients.split()[0::2]
    assert with_gradient == of == "28"
