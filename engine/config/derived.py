"""Settings that are derived from other settings: sizes of a preset, and values given as a ratio."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from engine.config.fields import LARGEST
from engine.config.resolve import Precedence, SettingSource, SettingSources
from engine.config.sections.data import FILE_TYPES
from engine.config.sections.model import FROM_DATA
from engine.config.splits import VALIDATION
from engine.errors import Problem
from models.presets import PRESETS

SIZES = ("n_layer", "n_head", "n_embd")


def derive_settings(sources: SettingSources) -> None:
    """Add the settings that are not set but follow from other settings. Of the settings that are
    set, only ``data.type`` may change (``_data_type``)."""
    _sizes_of_preset(sources)
    _vocabulary(sources)
    _width(sources)
    _positions(sources)
    _inner_width(sources)
    _min_lr(sources)
    _data_type(sources)
    _held_out(sources)
    _offload(sources)
    _require_sizes(sources)


def _sizes_of_preset(sources: SettingSources) -> None:
    """Set the sizes of the model's preset, and its other settings."""
    chosen = sources.settings.get("model.preset")
    preset = PRESETS.get(str(chosen.value)) if chosen else None
    if chosen is None or preset is None:
        return
    for name, value in preset.settings.items():
        imply(sources, f"model.{name}", chosen, value, f" of {chosen.value}")


def _vocabulary(sources: SettingSources) -> None:
    """Mark model.vocab_size='data' as undetermined."""
    stated = sources.settings.get("model.vocab_size")
    if stated and stated.value == FROM_DATA:
        sources.undetermined.add("model.vocab_size")


def _width(sources: SettingSources) -> None:
    """Set model.n_embd to HIDDEN_SIZE by default. A rule compares the two where both are set."""
    _copy(sources, "hidden_size", "model.n_embd")


def _positions(sources: SettingSources) -> None:
    """Set model.block_size to SEQ_LEN by default."""
    _copy(sources, "seq_len", "model.block_size")
    if not sources.settings.keys() & {"seq_len", "model.block_size"}:
        sources.conflicting.add("model.block_size")


def _inner_width(sources: SettingSources) -> None:
    """Set model.n_inner from model.mlp_ratio, a multiple of model.n_embd."""
    ratio = sources.settings.pop("model.mlp_ratio", None)
    width = sources.settings.get("model.n_embd")
    if ratio is None:
        return
    if (share := _number(ratio.value)) is None or not 0 < share <= LARGEST:
        sources.problems.append(ratio.problem("must be float > 0"))
    elif width and is_count(width.value):
        imply(sources, "model.n_inner", ratio, int(share * width.value))


def _min_lr(sources: SettingSources) -> None:
    """Convert lr_scheduler.eta_min, a learning rate, to lr_scheduler.floor, a fraction of
    optimizer.lr."""
    lowest = sources.settings.pop("lr_scheduler.eta_min", None)
    if lowest is None:
        return
    peak = sources.settings.get("optimizer.lr")
    highest = _number(peak.value) if peak else None
    if (lr := _number(lowest.value)) is None or lr < 0:
        sources.problems.append(lowest.problem("must be float >= 0"))
    elif peak is None:
        sources.problems.append(
            lowest.problem("is converted to a fraction of optimizer.lr; set that too")
        )
    elif highest:
        imply(sources, "lr_scheduler.floor", lowest, lr / highest, name=lowest.name)


def _data_type(sources: SettingSources) -> None:
    """Set data.type to 'auto' for a path from the environment or an override.

    The data.type in the config file is about the path in the config file.
    """
    path, kind = (sources.settings.get(f"data.{key}") for key in ("path", "type"))
    if path and kind and path.precedence > kind.precedence and kind.value in FILE_TYPES:
        sources.settings["data.type"] = replace(path, value="auto")


def _held_out(sources: SettingSources) -> None:
    """Hold out no tokens of the training data if there is other data to validate on:
    data.validation_path, or a split other than 'validation'."""
    fraction, path = (
        sources.settings.get(f"data.{name}") for name in ("validation", "validation_path")
    )
    split = sources.settings.get("eval.split")
    if path and path.value is not None:
        if fraction and path.precedence > fraction.precedence:
            del sources.settings["data.validation"]
        imply(sources, "data.validation", path, 0.0)
    elif split and split.value != VALIDATION:
        imply(sources, "data.validation", split, 0.0)


def _offload(sources: SettingSources) -> None:
    """Offload optimizer states to NVMe if parameters are offloaded to it: both are updated
    there."""
    weights = sources.settings.get("zero.offload_params")
    if weights and weights.value == "nvme":
        imply(sources, "zero.offload", weights, "nvme")


def _require_sizes(sources: SettingSources) -> None:
    """Report a model without any size in one line; report none if its preset is already invalid."""
    stated = sources.settings
    missing = {f"model.{size}" for size in SIZES} - stated.keys() - sources.conflicting
    if "model.preset" in stated.keys() | sources.conflicting:
        sources.conflicting |= missing
    elif len(missing) == len(SIZES):
        message = f"model is missing; set its type, such as 'gpt2_small', or {', '.join(SIZES)}"
        sources.problems.append(Problem(sources.file, 0, None, message))
        sources.conflicting |= missing


def _copy(sources: SettingSources, cause: str, setting: str) -> None:
    """Use the value of setting ``cause`` for ``setting`` by default. An invalid value is reported
    for ``cause`` only."""
    stated = sources.settings.get(cause)
    if stated and is_count(stated.value):
        imply(sources, setting, stated, stated.value, f" ({stated.name})")
    elif stated and setting not in sources.settings:
        sources.conflicting.add(setting)


def imply(
    sources: SettingSources,
    setting: str,
    cause: SettingSource,
    value: object,
    remark: str = "",
    name: str | None = None,
) -> None:
    """Set ``setting`` to ``value`` unless it is set; messages cite the position of ``cause``."""
    if setting not in sources.settings:
        sources.settings[setting] = SettingSource(
            name=name or setting,
            written=value,
            value=value,
            origin=cause.origin,
            precedence=Precedence.IMPLIED,
            remark=remark,
        )


def is_count(value: object) -> TypeGuard[int]:
    """Return whether the schema accepts a value as a count."""
    return type(value) is int and 1 <= value <= LARGEST


def _number(value: object) -> float | None:
    """Return a number that is not a bool and at most 1e300 in size, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= 1e300 else None
