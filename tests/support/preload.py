"""Imports that nearly every rank of a test needs, run once in the server that forks the ranks: each
rank would spend seconds on them. No module here computes, since a fork loses torch's threads. The
garbage collector of a rank skips the objects of these modules, and so leaves their memory shared.
"""

from __future__ import annotations

import gc
from importlib import import_module

from engine.world.colossal import ColossalContext

gc.disable()
for name in (
    "einops._torch_specific",
    "models.parallel.modes",
    "pytest",
    "torch._dynamo",
    "tests.support.checkpoints",
    "tests.support.jobs",
    "tests.support.runs",
    "tests.support.training",
    "train_gpt",
):
    import_module(name)
ColossalContext()  # imports Colossal-AI
gc.enable()
gc.freeze()
