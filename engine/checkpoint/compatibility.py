"""What is not as it was when a checkpoint was written, and what that means for going on. No torch.

Another model or update rule cannot go on; other samples or another order of them only if the user
says so; the rest is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from engine.checkpoint.manifest import SavedLayout, TrainingState
from engine.config.schema import all_settings, user_name
from engine.errors import UserError
from engine.formatting import plural
from engine.plan import Plan

# What the tensors of a checkpoint stand for
ARCHITECTURE = (
    *(f"model.{name}" for name in ("n_layer", "n_head", "n_embd", "head_dim", "n_inner")),
    *(f"model.{name}" for name in ("vocab_size", "block_size", "tie_embeddings")),
    *("model.activation", "model.layer_norm_epsilon"),
)
FIXED = {*ARCHITECTURE, "optimizer.type"}
# What is told as a layout, or changes nothing that is learned
NOT_REPORTED = {
    *("name", "source", "backend", "timeout", "start_timeout", "data.cache"),
    *("mode", "tensor_parallel", "depth", "pipeline", "model.num_chunks", "zero.stage"),
    *(name for name in all_settings() if name.startswith(("log.", "checkpoint."))),
}
ALLOW_NEW_DATA = "--allow-new-data"


def check_compatible(
    plan: Plan, corpus: str, training: TrainingState, *, path: object, new_data: bool
) -> list[str]:
    """Lines on what has changed since the checkpoint at ``path``.

    ``corpus`` is the fingerprint of the data there is now, which ``new_data`` allows to be other.

    Raises:
        UserError: the run cannot go on from this checkpoint; every difference that stands against
        it.
    """
    changed = dict(_changed(training.settings, plan.settings.model_dump(mode="json")))
    fixed = {name: old for name, old in changed.items() if name in FIXED}
    if fixed:
        lines = [f"{path} is of another model or optimizer, and cannot go on as this one:"]
        raise UserError("\n".join([*lines, *(_cited(plan, *item) for item in fixed.items())]))
    data = {name: old for name, old in changed.items() if _is_data_setting(name)}
    anew = [_cited(plan, "seed", data.pop("seed"))] if "seed" in data else []
    if corpus != training.corpus:
        anew += [_cited(plan, *item) for item in data.items()] or ["  the data has changed"]
    if anew and not new_data:
        raise UserError(
            "\n".join([f"{path} was trained on other samples, or in another order:", *anew])
            + f"\n{ALLOW_NEW_DATA} goes on all the same"
        )
    return anew + [
        _cited(plan, name, old)
        for name, old in changed.items()
        if name not in NOT_REPORTED and not _is_data_setting(name)
    ]


def layout_change(before: SavedLayout, now: SavedLayout) -> str | None:
    """A line on what another layout means for what follows; None if it is the same."""
    if before == now:
        return None
    return (
        f"written by {before}, goes on as {now}: parameters, optimizer and the order of samples "
        "are exact, dropout draws other masks"
    )


def batch_change(training: TrainingState, before: SavedLayout, plan: Plan) -> list[str]:
    """Return a line where a step has another number of samples than at the checkpoint, with the
    setting that keeps the number, where a whole one does."""
    old = dict(_flat(training.settings))
    factors = old.get("batch_size"), old.get("gradient_accumulation", 1)
    if not all(isinstance(factor, int) for factor in factors):
        return []
    then, now = prod(factors) * before.data_parallel, plan.global_batch
    if then == now:
        return []
    settings, keeps = plan.settings, "no whole number keeps it"
    rounds, left = divmod(then, now // settings.gradient_accumulation)
    samples, rest = divmod(then, now // settings.batch_size)
    if not left and rounds:
        keeps = f"gradient_accumulation={rounds} keeps {then}"
    elif not rest and samples and samples % settings.num_micro_batches == 0:
        keeps = f"BATCH_SIZE={samples} keeps {then}"
    return [f"a step has {now} samples, and had {then} at the checkpoint: {keeps}"]


def thread_change(training: TrainingState, device: str, now: int) -> list[str]:
    """Return a line where a rank has another number of threads than at the checkpoint, which splits
    sums differently; none on a GPU or where the number was not recorded."""
    then = training.threads
    if device != "cpu" or training.device != "cpu" or then in (0, now):
        return []
    return [
        f"{plural(now, 'thread')} a rank, {then} at the checkpoint: sums round differently; "
        f"OMP_NUM_THREADS={then} keeps the bits"
    ]


def _is_data_setting(name: str) -> bool:
    return name in ("seed", "seq_len") or (name.startswith("data.") and name not in NOT_REPORTED)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings that both know and that differ, and what they were."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for name in all_settings():
        if name in old and old[name] != new[name]:
            yield name, old[name]


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _cited(plan: Plan, name: str, old: object) -> str:
    """ "  gpt.py:12: model.n_layer=4; in the checkpoint it is 2" """
    return f"  {plan.cite(name)}; in the checkpoint {user_name(name)} is {old!r}"
