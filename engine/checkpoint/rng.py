"""The states of all global random generators of a process, as JSON.

cuboid uses none of them (weights, sample order and dropout have keyed generators of their own), but
libraries and user code may.
"""

from __future__ import annotations

import json
import random
from typing import Any

import numpy
import torch


def rng_state(device: torch.device) -> str:
    """Return the states of this process's generators, and of ``device``'s if it is a GPU."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(legacy=False),
        "torch": torch.get_rng_state().tolist(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device).tolist()
    return json.dumps(state, default=numpy.ndarray.tolist)


def restore_rng_state(text: str, device: torch.device) -> None:
    """Set the random generators to the states in ``text``, which ``rng_state`` returned. Raises
    ValueError, KeyError or TypeError for any other text."""
    state = json.loads(text)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8), device)
