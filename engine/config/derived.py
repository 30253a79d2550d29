"""Settings that follow from other settings: the sizes of a preset, and what is given as a ratio."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from engine.config.errors import Problem
from engine.config.fields import LARGEST
from engine.config.resolve import Stated, Statements, Weight
from models.presets import PRESETS

FILE_TYPES = ("auto", "text", "json", "jsonl")
SIZES = ("n_layer", "n_head", "n_embd")


def complete(statements: Statements) -> None:
    """Fill in what is not stated and follows; what is stated stays."""
    _sizes_of_preset(statements)
    _width(statements)
    _positions(statements)
    _inner_width(statements)
    _floor(statements)
    _source(statements)
    _offload(statements)
    _require_sizes(statements)


def _sizes_of_preset(statements: Statements) -> None:
    chosen = statements.settings.get("model.preset")
    preset = PRESETS.get(str(chosen.value)) if chosen else None
    if chosen is None or preset is None:
        return
    for size in (*SIZES, "vocab_size", "block_size"):
        value = getattr(preset, size)
        if value is not None:
            _imply(statements, f"model.{size}", chosen, value, f" of {chosen.value}")


def _width(statements: Statements) -> None:
    """HIDDEN_SIZE is the width where nothing else says it; else the two are compared."""
    _copy(statements, "hidden_size", "model.n_embd")


def _positions(statements: Statements) -> None:
    """As many as a sample has tokens."""
    _copy(statements, "seq_len", "model.block_size")
    if not statements.settings.keys() & {"seq_len", "model.block_size"}:
        statements.disputed.add("model.block_size")


def _inner_width(statements: Statements) -> None:
    """model.mlp_ratio, of the width."""
    ratio = statements.settings.pop("model.mlp_ratio", None)
    width = statements.settings.get("model.n_embd")
    if ratio is None:
        return
    if (share := _number(ratio.value)) is None or not 0 < share <= LARGEST:
        statements.problems.append(ratio.problem("must be float > 0"))
    elif width and is_count(width.value):
        _imply(statements, "model.n_inner", ratio, int(share * width.value))


def _floor(statements: Statements) -> None:
    """lr_scheduler.eta_min, a learning rate; the floor is a share of optimizer.lr."""
    lowest = statements.settings.pop("lr_scheduler.eta_min", None)
    if lowest is None:
        return
    peak = statements.settings.get("optimizer.lr")
    highest = _number(peak.value) if peak else None
    if (lr := _number(lowest.value)) is None or lr < 0:
        statements.problems.append(lowest.problem("must be float >= 0"))
    elif peak is None:
        statements.problems.append(lowest.problem("needs optimizer.lr, of which it is a share"))
    elif highest:
        _imply(statements, "lr_scheduler.floor", lowest, lr / highest, name=lowest.name)


def _source(statements: Statements) -> None:
    """A path that the environment or an override gives is read by its content, whatever the config
    says of the file that it names itself."""
    path, kind = (statements.settings.get(f"data.{key}") for key in ("path", "type"))
    if path and kind and path.weight > kind.weight and kind.value in FILE_TYPES:
        statements.settings["data.type"] = replace(path, value="auto")


def _offload(statements: Statements) -> None:
    """Weights on the disk take their optimizer states with them: they are updated there."""
    weights = statements.settings.get("zero.offload_params")
    if weights and weights.value == "nvme":
        _imply(statements, "zero.offload", weights, "nvme")


def _require_sizes(statements: Statements) -> None:
    """One line for a model without any size; none for what is missing because of another error."""
    stated = statements.settings
    missing = {f"model.{size}" for size in SIZES} - stated.keys() - statements.disputed
    if "model.preset" in stated.keys() | statements.disputed:
        statements.disputed |= missing
    elif len(missing) == len(SIZES):
        message = f"model is missing: its type, such as 'gpt2_small', or {', '.join(SIZES)}"
        statements.problems.append(Problem(statements.file, 0, None, message))
        statements.disputed |= missing


def _copy(statements: Statements, cause: str, setting: str) -> None:
    """A count that stands in for another; what is wrong with it is said once."""
    stated = statements.settings.get(cause)
    if stated and is_count(stated.value):
        _imply(statements, setting, stated, stated.value, f" ({stated.name})")
    elif stated and setting not in statements.settings:
        statements.disputed.add(setting)


def _imply(
    statements: Statements,
    setting: str,
    cause: Stated,
    value: object,
    remark: str = "",
    name: str | None = None,
) -> None:
    if setting not in statements.settings:
        statements.settings[setting] = Stated(
            name=name or setting,
            written=value,
            value=value,
            origin=cause.origin,
            weight=Weight.IMPLIED,
            remark=remark,
        )


def is_count(value: object) -> TypeGuard[int]:
    """Whether the schema takes a value as a count."""
    return type(value) is int and 1 <= value <= LARGEST


def _number(value: object) -> float | None:
    """A number of ordinary size that is not a bool, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= 1e300 else None
