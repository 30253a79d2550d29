"""Rule for settings that have no effect because of other settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from engine.config.rule_context import Finding, RuleContext
from engine.config.schema import Settings
from engine.config.sections.data import FILE_TYPES
from engine.config.sections.loss import LossScaleSettings
from engine.config.splits import can_validate
from models.parallel.registry import modes
from models.parallel.rows import RowOrder

WITHOUT_TEXT = ("images", "synthetic")
"""Sources whose tokens are no text."""


class Requirement(NamedTuple):
    """Condition under which a setting has an effect."""

    is_met: Callable[[Settings], bool]
    depends_on: tuple[str, ...]
    """Settings that the message cites as the cause."""
    text: str
    """The requirement in words."""


def _validates(settings: Settings) -> bool:
    """Return whether validations come before the end of the run."""
    validation = settings.eval
    is_periodic = validation.every != 0 and bool(validation.every or validation.epochs)
    return is_periodic and can_validate(settings)


def _shares_samples(settings: Settings) -> bool:
    """Return whether several ranks hold a sample together."""
    mode = modes()[settings.mode]
    sizes = mode.axes(settings.tensor_parallel, settings.depth)
    if sizes is None:
        return True  # another rule rejects the layout
    tokens = settings.batch_size // settings.num_micro_batches * settings.seq_len
    return not RowOrder.of(mode, sizes, tokens, settings.seq_len).is_whole


_ADAM = Requirement(
    lambda s: s.optimizer.type != "sgd",
    ("optimizer.type",),
    "optimizer.type='adam' or 'adamw'",
)
_DECAYING = Requirement(
    lambda s: s.lr_scheduler.type != "constant",
    ("lr_scheduler.type",),
    "a schedule that decays",
)
_SAVING = Requirement(
    lambda s: s.checkpoint.is_enabled,
    ("checkpoint.every", "checkpoint.epochs", "checkpoint.minutes"),
    "checkpoint.every, checkpoint.epochs or checkpoint.minutes",
)
_VALIDATING = Requirement(
    lambda s: s.eval.every != 0, ("eval.every",), "an eval.every other than 0"
)
_HELD_OUT = Requirement(
    can_validate, ("data.validation",), "a data.validation above 0, or a data.validation_path"
)
_TEXT = Requirement(
    lambda s: s.data.type not in WITHOUT_TEXT, ("data.type",), "a data.type with text"
)
_PIPELINE = Requirement(lambda s: s.pipeline > 1, ("pipeline",), "PIPELINE of 2 or more")

REQUIREMENTS: Mapping[str, Requirement] = {
    "optimizer.betas": _ADAM,
    "optimizer.eps": _ADAM,
    "optimizer.momentum": Requirement(
        lambda s: s.optimizer.type == "sgd", ("optimizer.type",), "optimizer.type='sgd'"
    ),
    "optimizer.decay": Requirement(
        lambda s: s.optimizer.weight_decay > 0,
        ("optimizer.weight_decay",),
        "a weight decay above 0",
    ),
    "lr_scheduler.total": _DECAYING,
    "lr_scheduler.floor": _DECAYING,
    "lr_scheduler.warmup_by": Requirement(
        lambda s: s.lr_scheduler.warmup > 0, ("lr_scheduler.warmup",), "a warm-up"
    ),
    "data.path": Requirement(
        lambda s: s.data.type != "synthetic",
        ("data.type",),
        "a data.type that reads files, such as 'auto'",
    ),
    "data.key": Requirement(
        lambda s: s.data.type in ("auto", "images", "json", "jsonl") and s.data.path is not None,
        ("data.type", "data.path"),
        "a data.path and a data.type that reads JSON or images",
    ),
    "data.tokenizer": _TEXT,
    "data.tokenizer_path": Requirement(
        lambda s: s.data.type not in WITHOUT_TEXT and s.data.tokenizer == "sentencepiece",
        ("data.type", "data.tokenizer"),
        "data.tokenizer='sentencepiece' and a data.type with text",
    ),
    "data.truncate": Requirement(
        lambda s: s.data.type in FILE_TYPES, ("data.type",), "a data.type that reads text"
    ),
    **{
        f"data.{name}": Requirement(
            lambda s: s.data.type == "images", ("data.type",), "data.type='images'"
        )
        for name in ("codes", "codebook", "pixel_order", "variants")
    },
    "eval.batches": Requirement(
        lambda s: s.eval.every != 0 and s.eval.samples is None and s.eval.tokens is None,
        ("eval.every", "eval.samples", "eval.tokens"),
        "an eval.every other than 0, and neither eval.samples nor eval.tokens",
    ),
    "eval.samples": _VALIDATING,
    "eval.tokens": _VALIDATING,
    "eval.epochs": Requirement(
        lambda s: s.eval.every != 0 and can_validate(s),
        ("eval.every", *_HELD_OUT.depends_on),
        f"{_VALIDATING.text}, and {_HELD_OUT.text}",
    ),
    "eval.lanes": Requirement(
        lambda s: s.data.type == "lanes", ("data.type",), "data.type='lanes'"
    ),
    "eval.every": Requirement(
        lambda s: not s.eval.every or can_validate(s), _HELD_OUT.depends_on, _HELD_OUT.text
    ),
    "log.name": Requirement(lambda s: s.log.dir is None, ("log.dir",), "a log.dir of None"),
    "log.wandb_project": Requirement(
        lambda s: s.log.wandb is not None, ("log.wandb",), "log.wandb='online' or 'offline'"
    ),
    "checkpoint.keep": _SAVING,
    "checkpoint.asynchronous": _SAVING,
    "checkpoint.best": Requirement(
        lambda s: s.checkpoint.is_enabled and (s.checkpoint.best_by == "train" or _validates(s)),
        (*_SAVING.depends_on, "eval.every", "eval.epochs", "data.validation"),
        f"{_SAVING.text}, and validations by eval.every or eval.epochs",
    ),
    "checkpoint.best_by": Requirement(
        lambda s: s.checkpoint.is_enabled and s.checkpoint.best,
        (*_SAVING.depends_on, "checkpoint.best"),
        f"{_SAVING.text}, and checkpoint.best=True",
    ),
    "context": Requirement(
        _shares_samples,
        ("mode", "tensor_parallel", "batch_size", "num_micro_batches"),
        "micro-batches of fewer samples than the ranks that shard their tokens",
    ),
    "matmul": Requirement(
        lambda s: s.precision == "float32", ("precision",), "precision='float32'"
    ),
    "schedule": _PIPELINE,
    "stages": _PIPELINE,
    **{
        f"zero.{name}": Requirement(
            lambda s: s.zero.offload == "nvme", ("zero.offload",), "zero.offload='nvme'"
        )
        for name in ("nvme_path", "nvme_buffer", "nvme_store")
    },
    **{
        f"loss_scale.{name}": Requirement(
            lambda s: s.precision == "fp16", ("precision",), "precision='fp16'"
        )
        for name in LossScaleSettings.model_fields
    },
    **{
        f"loss_spike.{name}": Requirement(
            lambda s: s.loss_spike.factor is not None,
            ("loss_spike.factor",),
            "a loss_spike.factor",
        )
        for name in ("window", "max_skips")
    },
}


def settings_have_an_effect(context: RuleContext) -> Iterator[Finding]:
    """Note each setting that was set and has no effect, with the cause and the requirement."""
    for name, requirement in REQUIREMENTS.items():
        if context.is_stated_by_user(name) and not requirement.is_met(context.settings):
            yield context.note(
                name,
                f"{context.cite(name)} has no effect with "
                f"{context.cite(*requirement.depends_on)}; it needs {requirement.text}",
            )


RULES = (settings_have_an_effect,)
