"""The learning rate over the run."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.rule_context import Finding, RuleContext


def warmup_ends_before_the_decay(facts: RuleContext) -> Iterator[Finding]:
    """The decay has something left to do."""
    schedule = facts.settings.lr_scheduler
    if schedule.total is not None and schedule.warmup >= schedule.total:
        yield facts.error(
            "lr_scheduler.warmup",
            f"{facts.cite('lr_scheduler.warmup')} is not less than "
            f"{facts.cite('lr_scheduler.total')}",
        )


def warmup_ends_before_the_run(facts: RuleContext) -> Iterator[Finding]:
    """A run that ends in its warm-up never trains at its learning rate."""
    settings, schedule = facts.settings, facts.settings.lr_scheduler
    end = settings.max_steps if schedule.by == "step" else settings.num_epochs
    if schedule.by == "epoch" and settings.max_steps is not None:
        return
    if end is not None and schedule.warmup >= end:
        name = "max_steps" if schedule.by == "step" else "num_epochs"
        yield facts.warning(
            "lr_scheduler.warmup",
            f"{facts.cite('lr_scheduler.warmup')} is not less than {facts.cite(name)}: "
            f"{facts.cite('optimizer.lr')} is never reached",
        )


def warmup_is_not_a_share(facts: RuleContext) -> Iterator[Finding]:
    """Other trainers take a share of the run; here, less than one step warms nothing up."""
    settings, schedule = facts.settings, facts.settings.lr_scheduler
    if schedule.by != "step" or not 0 < schedule.warmup < 1:
        return
    share = f"{schedule.warmup:.4g} of the run"
    if settings.max_steps is not None:
        steps = max(1, round(schedule.warmup * settings.max_steps))
        remedy = f"for {share}, state {steps} ({facts.cite('max_steps')})"
    elif settings.num_epochs is not None and schedule.total is None:
        epochs = f"{schedule.warmup * settings.num_epochs:.4g}"
        remedy = (
            f"for {share}, state lr_scheduler.by='epoch' and lr_scheduler.warmup={epochs} "
            f"({facts.cite('num_epochs')})"
        )
    else:
        remedy = "state a number of steps"
    yield facts.error(
        "lr_scheduler.warmup",
        f"{facts.cite('lr_scheduler.warmup')} is less than one step; {remedy}",
    )


def epochs_need_data_that_ends(facts: RuleContext) -> Iterator[Finding]:
    """Synthetic data has no epochs to count."""
    settings = facts.settings
    if settings.lr_scheduler.by == "epoch" and settings.data.type == "synthetic":
        yield facts.error(
            "lr_scheduler.by",
            f"{facts.cite('lr_scheduler.by')} needs data that ends, which "
            f"{facts.cite('data.type')} does not; use lr_scheduler.by='step'",
        )


def loss_scale_is_within_its_bounds(facts: RuleContext) -> Iterator[Finding]:
    """min <= initial <= max."""
    scale = facts.settings.loss_scale
    if not scale.min <= scale.initial <= scale.max:
        yield facts.error(
            "loss_scale.initial",
            f"{facts.cite('loss_scale.initial')} is not between {facts.cite('loss_scale.min')} "
            f"and {facts.cite('loss_scale.max')}",
        )


RULES = (
    warmup_ends_before_the_decay,
    warmup_ends_before_the_run,
    warmup_is_not_a_share,
    epochs_need_data_that_ends,
    loss_scale_is_within_its_bounds,
)
