"""What the user may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

# Names that people use elsewhere and that no likeness of letters leads to ours.
MEANT = {
    "ACCUMULATION_STEPS": "gradient_accumulation",
    "EPOCHS": "NUM_EPOCHS",
    "GLOBAL_BATCH_SIZE": "BATCH_SIZE",
    "GRAD_ACCUM": "gradient_accumulation",
    "LEARNING_RATE": "optimizer.lr",
    "LR": "optimizer.lr",
    "MICRO_BATCHES": "NUM_MICRO_BATCHES",
    "MICRO_BATCH_SIZE": "NUM_MICRO_BATCHES",
    "NUM_CHUNKS": "model.num_chunks",
    "PIPELINE_PARALLEL": "PIPELINE",
    "PIPELINE_PARALLEL_SIZE": "PIPELINE",
    "PIPELINE_SIZE": "PIPELINE",
    "PP": "PIPELINE",
    "SEQUENCE_LENGTH": "SEQ_LEN",
    "STEPS": "MAX_STEPS",
    "optimizer.learning_rate": "optimizer.lr",
    "TENSOR_PARALLEL_MODE": "MODE",
    "TENSOR_PARALLEL_SIZE": "TENSOR_PARALLEL",
    "TOTAL_BATCH_SIZE": "BATCH_SIZE",
    "TP": "TENSOR_PARALLEL",
    "VOCAB_SIZE": "model.vocab_size",
    "WARMUP_EPOCHS": "lr_scheduler.warmup",
    "WARMUP_STEPS": "lr_scheduler.warmup",
    "WEIGHT_DECAY": "optimizer.weight_decay",
}
# Names of what follows from the settings and the number of processes.
DERIVED = {
    "DATA_PARALLEL": "GPUS / (TENSOR_PARALLEL x PIPELINE)",
    "DATA_PARALLEL_SIZE": "GPUS / (TENSOR_PARALLEL x PIPELINE)",
    "DP": "GPUS / (TENSOR_PARALLEL x PIPELINE)",
    "GPUS": "the number of processes that are started",
    "NUM_GPUS": "the number of processes that are started",
    "WORLD_SIZE": "the number of processes that are started",
    "parallel.data": "GPUS / (TENSOR_PARALLEL x PIPELINE)",
}


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """The message for a name that is not a setting."""
    if name in DERIVED:
        return f"{name} is not a setting: it is derived, {DERIVED[name]}"
    meant = MEANT.get(name) or nearest(name, known)
    return f"{name} is not a setting; " + (
        f"did you mean {meant}?" if meant else "cuboid settings lists them"
    )


def nearest_multiples(value: int, of: int) -> str:
    """The multiples next below and next above ``value``: "8, 12"."""
    below = value // of * of
    return ", ".join(str(n) for n in (below, below + of) if n)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like ``word``, whatever its case; None where none is like it."""
    by_folded = {other.casefold(): other for other in known}
    found = get_close_matches(word.casefold()[:80], by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None
