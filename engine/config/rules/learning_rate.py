"""Rules for the learning rate schedule and the loss scale."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.rule_context import Finding, RuleContext
from engine.config.sections.data import ENDLESS_TYPES


def warmup_ends_before_the_decay(context: RuleContext) -> Iterator[Finding]:
    """Require lr_scheduler.warmup to be less than lr_scheduler.total, if their units are equal. A
    run compares values in different units, once it has read the data."""
    schedule = context.settings.lr_scheduler
    if schedule.total is None or schedule.warmup_by != schedule.by:
        return
    if schedule.warmup >= schedule.total:
        yield context.error(
            "lr_scheduler.warmup",
            f"{context.cite('lr_scheduler.warmup')} must be less than "
            f"{context.cite('lr_scheduler.total')}",
        )


def warmup_ends_before_the_run(context: RuleContext) -> Iterator[Finding]:
    """Warn if lr_scheduler.warmup is not less than the length of the run."""
    settings, schedule = context.settings, context.settings.lr_scheduler
    name = {"step": "max_steps", "epoch": "num_epochs"}.get(schedule.warmup_by)
    if name is None or (name == "num_epochs" and settings.max_steps is not None):
        return
    end = getattr(settings, name)
    if end is not None and schedule.warmup >= end:
        yield context.warning(
            "lr_scheduler.warmup",
            f"{context.cite('lr_scheduler.warmup')} is not less than {context.cite(name)}: the run "
            f"ends before it reaches {context.cite('optimizer.lr')}; use a shorter warm-up",
        )


def warmup_is_at_least_one_step(context: RuleContext) -> Iterator[Finding]:
    """Require lr_scheduler.warmup in steps or tokens to be 0 or at least 1.

    A value between 0 and 1 is probably meant as a fraction of the run, as other trainers accept.
    """
    settings, schedule = context.settings, context.settings.lr_scheduler
    if schedule.warmup_by == "epoch" or not 0 < schedule.warmup < 1:
        return
    fraction = f"{schedule.warmup:.4g} of the run"
    if settings.max_steps is not None and schedule.warmup_by == "step":
        steps = max(1, round(schedule.warmup * settings.max_steps))
        remedy = f"for {fraction}, set it to {steps} ({context.cite('max_steps')})"
    elif settings.max_steps is None and settings.num_epochs is not None and schedule.total is None:
        epochs = f"{schedule.warmup * settings.num_epochs:.4g}"
        remedy = (
            f"for {fraction}, set lr_scheduler.by='epoch' and lr_scheduler.warmup={epochs} "
            f"({context.cite('num_epochs')})"
        )
    else:
        remedy = f"set a number of {schedule.warmup_by}s"
    yield context.error(
        "lr_scheduler.warmup",
        f"{context.cite('lr_scheduler.warmup')} is less than one {schedule.warmup_by}; {remedy}",
    )


def decay_is_at_least_one_step(context: RuleContext) -> Iterator[Finding]:
    """Require lr_scheduler.total in steps or tokens to be at least 1."""
    schedule = context.settings.lr_scheduler
    if schedule.by != "epoch" and schedule.total is not None and schedule.total < 1:
        yield context.error(
            "lr_scheduler.total",
            f"{context.cite('lr_scheduler.total')} is less than one {schedule.by}; set a number "
            f"of {schedule.by}s, or lr_scheduler.by='epoch'",
        )


def epochs_need_finite_data(context: RuleContext) -> Iterator[Finding]:
    """Require units other than epochs for synthetic data, which has no epochs."""
    settings = context.settings
    if settings.data.type not in ENDLESS_TYPES:
        return
    for name in ("by", "warmup_by"):
        if getattr(settings.lr_scheduler, name) == "epoch":
            yield context.error(
                f"lr_scheduler.{name}",
                f"{context.cite(f'lr_scheduler.{name}')} needs data with epochs, but "
                f"{context.cite('data.type')} is endless; use 'step' or 'token'",
            )
            return


def loss_scale_is_within_its_bounds(context: RuleContext) -> Iterator[Finding]:
    """Require loss_scale.initial to be between loss_scale.min and loss_scale.max."""
    scale = context.settings.loss_scale
    if not scale.min <= scale.initial <= scale.max:
        yield context.error(
            "loss_scale.initial",
            f"{context.cite('loss_scale.initial')} must be between "
            f"{context.cite('loss_scale.min')} and {context.cite('loss_scale.max')}",
        )


RULES = (
    warmup_ends_before_the_decay,
    warmup_ends_before_the_run,
    warmup_is_at_least_one_step,
    decay_is_at_least_one_step,
    epochs_need_finite_data,
    loss_scale_is_within_its_bounds,
)
