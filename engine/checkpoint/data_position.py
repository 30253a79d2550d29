"""The position in the data at which a checkpoint was saved. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.data.batches.consumed import Consumed

if TYPE_CHECKING:
    from engine.checkpoint.manifest import TrainingState
    from engine.data.source import Corpus


def consumed_by(training: TrainingState, corpus: Corpus) -> Consumed:
    """Return the data that the run had read by the checkpoint. Older checkpoints record neither
    tokens nor epochs: both are computed from their settings and the present ``corpus``."""
    tokens, epochs = training.tokens, training.epochs
    if tokens is None:
        tokens = training.samples * int(training.settings.get("seq_len", 0))
    if epochs is None:
        samples = corpus.train.samples
        epochs = 0.0 if samples is None else training.samples / samples
    return Consumed(step=training.step, samples=training.samples, tokens=tokens, epochs=epochs)


def rest_of_epoch(training: TrainingState, corpus: Corpus) -> list[str]:
    """Return a line on the rest of the epoch if the data has changed since the checkpoint: the
    fraction of the epoch that is left stays the same, now of the present samples."""
    epochs = consumed_by(training, corpus).epochs
    if corpus.fingerprint == training.corpus or not epochs or corpus.train.samples is None:
        return []
    return [
        f"{epochs:.2f} epochs were read of other samples: {1 - epochs % 1:.0%} of an epoch of the "
        "present samples follows"
    ]
