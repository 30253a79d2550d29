"""Imports that nearly every rank of a test needs, done once in the server that ranks are forked
from: each rank would spend seconds of a core on them. Nothing here computes, since a fork loses
torch's threads."""

from __future__ import annotations

from importlib import import_module

from engine.world.colossal import ColossalContext

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
