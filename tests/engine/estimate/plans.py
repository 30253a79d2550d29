"""Plans made from settings, without a file."""

from __future__ import annotations

from typing import Any

from engine.config.schema import Settings
from engine.config.sections.model import ModelSettings
from engine.config.sections.optimizer import OptimizerSettings
from engine.config.sections.zero import ZeroSettings
from engine.layout import Layout
from engine.plan import Plan
from models.parallel.registry import modes

GPT2: dict[str, Any] = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024}
SMALL: dict[str, Any] = {
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 64,
    "block_size": 32,
    "vocab_size": 512,
}


def plan(
    *,
    mode: str = "serial",
    tensor: int = 1,
    depth: int = 1,
    pipeline: int = 1,
    data: int = 1,
    model: dict[str, Any] = SMALL,
    optimizer: dict[str, Any] | None = None,
    zero: dict[str, Any] | None = None,
    **settings: Any,
) -> Plan:
    """Make a plan; ``model`` and ``settings`` have the schema's names."""
    given: dict[str, Any] = {"batch_size": 4, "seq_len": model["block_size"], **settings}
    layout = Layout(mode=modes()[mode], tensor=tensor, pipeline=pipeline, data=data, depth=depth)
    return Plan(
        settings=Settings(
            name="test",
            source="test.py",
            mode=mode,
            tensor_parallel=tensor,
            depth=depth,
            pipeline=pipeline,
            model=ModelSettings(**model),
            optimizer=OptimizerSettings(**(optimizer or {})),
            zero=ZeroSettings(**(zero or {})),
            **given,
        ),
        layout=layout,
    )
