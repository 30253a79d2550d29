"""The report of ``cuboid validate --json``: sizes in bytes, schema in docs/validate.schema.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from engine.config.schema import user_name
from engine.estimate.result import Memory
from engine.plan import Plan
from launch.validate.alternatives import Alternative
from launch.validate.inspection import EstimatedPlan, Inspection
from launch.validate.mode_comparison import ModeEstimate

VERSION = 1  # incremented when a field is renamed, removed or changes its meaning


def as_json(inspections: Sequence[Inspection]) -> str:
    """Render inspections as one JSON object; its ``configs`` are in the order given."""
    report = {"version": VERSION, "configs": [_config(inspection) for inspection in inspections]}
    return json.dumps(report, indent=2, allow_nan=False)


def _config(inspection: Inspection) -> dict[str, Any]:
    case = inspection.case
    plan = case.plan if case else None
    return {
        "source": inspection.source,
        "accepted": not inspection.problems,
        "problems": list(inspection.problems),
        "warnings": list(plan.warnings) if plan else [],
        "notes": list(plan.notes) if plan else [],
        "plan": _plan(plan) if plan else None,
        "estimate": _estimate(case) if case else None,
        "machine": [asdict(check) for check in case.checks] if case else [],
    }


def _plan(plan: Plan) -> dict[str, Any]:
    layout, settings = plan.layout, plan.settings
    return {
        "name": settings.name,
        "fingerprint": plan.fingerprint,
        "gpus": layout.gpus,
        "layout": {
            "data": layout.data,
            "pipeline": layout.pipeline,
            "tensor": layout.tensor,
            "mode": layout.mode.name,
            "axes": layout.tensor_axes,
        },
        "batch": {
            "per_rank": settings.batch_size,
            "micro_batches": settings.num_micro_batches,
            "per_micro_batch": plan.micro_batch,
            "padded_micro_batch": plan.micro_batch,
            "rows_per_micro_batch": plan.row_order.rows,
            "gpus_per_sample": plan.row_order.group,
            "attention_idle": plan.row_order.idle,
            "accumulation": settings.gradient_accumulation,
            "samples_per_step": plan.global_batch,
            "tokens_per_step": plan.tokens_per_step,
        },
        "settings": settings.model_dump(mode="json", exclude={"name", "source"}),
        "undetermined": sorted(map(user_name, plan.undetermined)),
    }


def _estimate(case: EstimatedPlan) -> dict[str, Any]:
    predicted = case.estimate
    return {
        "parameters": {"total": predicted.parameters, "per_gpu": predicted.parameters_per_rank},
        "flops": {"per_token": predicted.flops_per_token, "per_step": predicted.flops_per_step},
        "bubble": predicted.bubble,
        "memory": {
            "gpu": case.gpu_memory,
            "fits": case.fits,
            "fullest_stage": predicted.fullest.stage,
            "stages": [
                {
                    "stage": stage.stage,
                    "layers": [[layers.start, layers.stop] for layers in stage.layers],
                    "parameters": stage.parameters,
                    "bytes": _memory(stage.memory),
                }
                for stage in predicted.stages
            ],
        },
        "sent": [asdict(sent) for sent in predicted.traffic],
        "alternatives": [_alternative(other) for other in case.alternatives],
        "nearest": [_alternative(other) for other in case.nearest],
        "modes": [_mode(row) for row in case.modes],
    }


def _memory(memory: Memory) -> dict[str, int]:
    return {"total": memory.total, **asdict(memory)}


def _alternative(other: Alternative) -> dict[str, Any]:
    return {
        "overrides": list(other.overrides),
        "gpus": other.plan.layout.gpus,
        "samples_per_step": other.plan.global_batch,
        "bytes": other.estimate.fullest.memory.total,
    }


def _mode(row: ModeEstimate) -> dict[str, Any]:
    layout = row.plan.layout
    return {
        "mode": layout.mode.name,
        "tensor": layout.tensor,
        "depth": layout.depth,
        "data": layout.data,
        "overrides": list(row.overrides),
        "samples_per_step": row.plan.global_batch,
        "bytes": row.memory,
        "sent": row.sent,
        "padding": row.padding,
    }
