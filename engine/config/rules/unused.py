"""Settings that were stated and that others leave without effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from engine.config.rule_context import Finding, RuleContext
from engine.config.schema import LossScaleSettings, Settings

SAVES = "checkpoint.every or checkpoint.minutes"

# setting -> (whether it has an effect, what else would have to be)
USED: Mapping[str, tuple[Callable[[Settings], bool], str]] = {
    "optimizer.betas": (lambda s: s.optimizer.type != "sgd", "an Adam"),
    "optimizer.eps": (lambda s: s.optimizer.type != "sgd", "an Adam"),
    "optimizer.momentum": (lambda s: s.optimizer.type == "sgd", "optimizer.type='sgd'"),
    "optimizer.decay": (lambda s: s.optimizer.weight_decay > 0, "a weight_decay above 0"),
    "lr_scheduler.total": (lambda s: s.lr_scheduler.type != "constant", "a type that decays"),
    "lr_scheduler.floor": (lambda s: s.lr_scheduler.type != "constant", "a type that decays"),
    "data.path": (lambda s: s.data.type != "synthetic", "a data.type that reads, such as 'auto'"),
    "data.key": (
        lambda s: s.data.type in ("auto", "json", "jsonl") and s.data.path is not None,
        "a data.path and a data.type that reads JSON",
    ),
    "data.tokenizer": (lambda s: s.data.type != "synthetic", "a source of text"),
    "eval.batches": (lambda s: s.eval.every != 0, "an eval.every other than 0"),
    "eval.every": (
        lambda s: not s.eval.every or s.data.validation > 0,
        "data.validation above 0",
    ),
    "checkpoint.keep": (lambda s: s.checkpoint.is_enabled, SAVES),
    "checkpoint.asynchronous": (lambda s: s.checkpoint.is_enabled, SAVES),
    "checkpoint.best": (
        lambda s: s.checkpoint.is_enabled and bool(s.eval.every) and s.data.validation > 0,
        f"{SAVES}, and validations by eval.every",
    ),
    "matmul": (lambda s: s.precision == "float32", "precision='float32'"),
    "schedule": (lambda s: s.pipeline > 1, "PIPELINE above 1"),
    "stages": (lambda s: s.pipeline > 1, "PIPELINE above 1"),
    **{
        f"zero.{name}": (lambda s: s.zero.offload == "nvme", "offloading to 'nvme'")
        for name in ("nvme_path", "nvme_buffer", "nvme_store")
    },
    **{
        f"loss_scale.{name}": (lambda s: s.precision == "fp16", "precision='fp16'")
        for name in LossScaleSettings.model_fields
    },
    **{
        f"loss_spike.{name}": (lambda s: s.loss_spike.factor is not None, "a loss_spike.factor")
        for name in ("window", "max_skips")
    },
}


def stated_for_nothing(facts: RuleContext) -> Iterator[Finding]:
    """What was stated and does nothing here, beside what it would take."""
    for name, (has_effect, needed) in USED.items():
        if facts.is_stated(name) and not has_effect(facts.settings):
            yield facts.note(name, f"{facts.cite(name)} has no effect: that takes {needed}")


RULES = (stated_for_nothing,)
