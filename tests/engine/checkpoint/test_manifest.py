"""The names on the disk in a checkpoint's JSON files."""

from __future__ import annotations

import json
from pathlib import Path

from engine.checkpoint.manifest import (
    TRAINING,
    LossScaleState,
    LossSpikesState,
    read_training,
)
from tests.support.checkpoints import training_at


def test_states_have_their_names_of_the_first_version_on_the_disk(tmp_path: Path) -> None:
    scale = {"scale": 8.0, "quiet": 1, "borne": 2, "skipped": 3}
    spikes = {"recent": [2.5, 2.0], "in_a_row": 1, "skipped": 4}
    training = training_at(
        5,
        loss_scale=LossScaleState.model_validate(scale),
        loss_spikes=LossSpikesState.model_validate(spikes),
    )
    (tmp_path / TRAINING).write_bytes(training.dump())
    content = json.loads((tmp_path / TRAINING).read_bytes())
    assert (content["loss_scale"], content["loss_spikes"]) == (scale, spikes)
    loaded = read_training(tmp_path)
    assert loaded == training
    assert loaded.loss_scale is not None
    assert loaded.loss_spikes is not None
    assert loaded.loss_scale.steps_since_overflow == 1
    assert loaded.loss_scale.consecutive_overflows == 2
    assert loaded.loss_spikes.consecutive_skips == 1
