"""The differences between a checkpoint and the run that resumes it, and the effects of these
differences. No torch.

A different model or update rule cannot be resumed. Different samples, or another order of them,
need --allow-new-data. All other differences are only reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from pydantic_core import to_jsonable_python

from engine.checkpoint.manifest import SavedLayout, TrainingState
from engine.config.schema import all_settings, user_name
from engine.errors import UserError
from engine.formatting import plural
from engine.plan import Plan

ARCHITECTURE = (
    *(f"model.{name}" for name in ("n_layer", "n_head", "n_embd", "head_dim", "n_inner")),
    *(f"model.{name}" for name in ("vocab_size", "block_size", "tie_embeddings")),
    *("model.activation", "model.layer_norm_epsilon", "model.scale_embedding"),
)
"""The settings that give the tensors of a checkpoint their shapes and their meaning."""
FIXED = {*ARCHITECTURE, "optimizer.type"}
"""The settings that a resume cannot change."""
NOT_REPORTED = {
    *("name", "source", "backend", "timeout", "start_timeout", "data.cache"),
    *("mode", "tensor_parallel", "depth", "pipeline", "model.num_chunks", "zero.stage"),
    *(name for name in all_settings() if name.startswith(("log.", "checkpoint."))),
}
"""The settings that ``layout_change`` reports, or that do not affect training."""
ALLOW_NEW_DATA = "--allow-new-data"


def check_compatible(
    plan: Plan,
    corpus: str,
    training: TrainingState,
    *,
    path: object,
    new_data: bool,
    new_order: Sequence[str] = (),
) -> list[str]:
    """Compare ``plan`` with the checkpoint at ``path`` and return a line per changed setting.

    ``corpus`` is the fingerprint of the present data; ``new_data`` allows it to differ.
    ``new_order``: lines about changes that reorder the samples, other than settings of the data.

    Raises:
        UserError: the checkpoint cannot be resumed; lists every difference that prevents it.
    """
    changed = dict(_changed(training.settings, plan.settings.model_dump(mode="json")))
    fixed = {name: old for name, old in changed.items() if name in FIXED}
    if fixed:
        lines = [
            f"{path} was saved with a different model or optimizer and cannot be resumed "
            "with this config:"
        ]
        lines += [_cited(plan, *item) for item in fixed.items()]
        raise UserError("\n".join([*lines, "restore them, or begin a new run with --resume none"]))
    data = {name: old for name, old in changed.items() if _is_data_setting(name)}
    new = [f"  {line}" for line in new_order]
    new += [_cited(plan, "seed", data.pop("seed"))] if "seed" in data else []
    if corpus != training.corpus:
        new += [_cited(plan, *item) for item in data.items()] or ["  the data has changed"]
    if new and not new_data:
        raise UserError(
            "\n".join(
                [f"{path} was trained on different data or in a different sample order:", *new]
            )
            + f"\npass {ALLOW_NEW_DATA} to resume anyway"
        )
    return new + [
        _cited(plan, name, old)
        for name, old in changed.items()
        if name not in NOT_REPORTED and not _is_data_setting(name)
    ]


def data_has_changed(plan: Plan, corpus: str, training: TrainingState) -> bool:
    """Return whether the data, whose fingerprint is ``corpus``, differs from the checkpoint's data
    although ``plan`` has the same data settings."""
    changed = _changed(training.settings, plan.settings.model_dump(mode="json"))
    return corpus != training.corpus and not any(_is_data_setting(name) for name, _ in changed)


def layout_change(
    before: SavedLayout, now: SavedLayout, *, fused_dropout: bool = False
) -> str | None:
    """Return a line on the effects of resuming in another layout; None if it is unchanged.
    ``fused_dropout``: a GPU kernel draws the dropout masks of attention, which then depend on
    shards."""
    if before == now:
        return None
    return (
        f"saved with {before}, resuming with {now}: parameters, optimizer state, sample order and "
        "dropout masks are identical"
        + (", except the masks of attention, which a GPU's kernel draws" if fused_dropout else "")
    )


def mask_change(training: TrainingState, plan: Plan) -> list[str]:
    """Return a line if the checkpoint is of a version whose dropout masks depended on shards."""
    model = plan.settings.model
    if training.dropout_by == "sample" or not (
        model.embd_pdrop or model.resid_pdrop or model.attn_pdrop
    ):
        return []
    return [
        "dropout masks depend on sample, position and feature now, and depended on the shards of "
        "the layout when the checkpoint was saved: the next steps draw other masks"
    ]


def batch_change(training: TrainingState, before: SavedLayout, plan: Plan) -> list[str]:
    """Return a line if the number of samples per step differs from the checkpoint's, with the
    setting that restores it, if an integer does."""
    old = dict(_flat(training.settings))
    factors = old.get("batch_size"), old.get("gradient_accumulation", 1)
    if not all(isinstance(factor, int) for factor in factors):
        return []
    then, now = prod(factors) * before.data_parallel, plan.global_batch
    if then == now:
        return []
    settings, remedy = plan.settings, "no integer setting restores it"
    rounds, left = divmod(then, now // settings.gradient_accumulation)
    samples, rest = divmod(then, now // settings.batch_size)
    if not left and rounds:
        remedy = f"gradient_accumulation={rounds} restores {then}"
    elif not rest and samples and samples % settings.num_micro_batches == 0:
        remedy = f"BATCH_SIZE={samples} restores {then}"
    return [f"{now} samples per step, {then} at the checkpoint; {remedy}"]


def thread_change(training: TrainingState, device: str, now: int) -> list[str]:
    """Return a line if the number of threads per rank differs from the checkpoint's, because sums
    are then split differently. Return none on a GPU or if the checkpoint has no number."""
    then = training.threads
    if device != "cpu" or training.device != "cpu" or then in (0, now):
        return []
    return [
        f"{plural(now, 'thread')} per rank, {then} at the checkpoint: sums round differently; "
        f"OMP_NUM_THREADS={then} gives identical bits"
    ]


def rate_change(training: TrainingState, plan: Plan) -> list[str]:
    """Return a line if the checkpoint is of a version in which a learning rate by epochs changed
    only between epochs. Its settings lack lr_scheduler.warmup_by."""
    before = dict(_flat(training.settings))
    staircase = before.get("lr_scheduler.by") == "epoch" and "lr_scheduler.warmup_by" not in before
    if not staircase or plan.settings.lr_scheduler.by != "epoch":
        return []
    return [
        f"{plan.cite('lr_scheduler.by')}: the learning rate follows from the fraction of the "
        "epoch; it changes within an epoch now, and only between epochs when the checkpoint was "
        "saved"
    ]


def _is_data_setting(name: str) -> bool:
    """Return whether the fingerprint of the data depends on a setting."""
    others = ("seed", "seq_len", "eval.lanes")
    return name in others or (name.startswith("data.") and name not in NOT_REPORTED)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings that differ, with their values in ``before``. A setting that ``before``
    lacks is newer than the checkpoint and had its default."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for name, field in all_settings().items():
        if name not in old and field.default_factory is not None:
            continue  # derived from the settings before it
        value = old[name] if name in old else to_jsonable_python(field.default)
        if value != new[name]:
            yield name, value


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _cited(plan: Plan, name: str, old: object) -> str:
    """Return '  gpt.py:12: model.n_layer=4; in the checkpoint model.n_layer is 2'."""
    return f"  {plan.cite(name)}; in the checkpoint {user_name(name)} is {old!r}"
