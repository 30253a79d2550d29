"""The pipeline: stages, chunks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

from engine.config.rule_context import Finding, RuleContext
from engine.config.value_hints import nearest_multiples

WORTH_A_WARNING = 0.25  # of a step spent waiting


def every_chunk_has_a_layer(facts: RuleContext) -> Iterator[Finding]:
    """PIPELINE x num_chunks pieces of the model, each with a block at least."""
    model, stages = facts.settings.model, facts.settings.pipeline
    chunks = stages * model.num_chunks
    if stages == 1:
        return
    if model.n_layer < chunks:
        yield facts.error(
            "pipeline",
            f"{facts.cite('model.n_layer')} is less than {facts.cite('pipeline')} x "
            f"{facts.cite('model.num_chunks')} = {chunks}, the pieces it is cut into; at most "
            f"{model.n_layer}",
        )
    elif model.n_layer % chunks:
        few = model.n_layer // chunks
        yield facts.warning(
            "pipeline",
            f"{facts.cite('model.n_layer')} is not a multiple of {chunks}, the pieces of "
            f"{facts.cite('pipeline', 'model.num_chunks')}: some have {few} layers and some "
            f"{few + 1}, and the slowest sets the pace",
        )


def chunks_need_the_interleaved_schedule(facts: RuleContext) -> Iterator[Finding]:
    """Several chunks on a rank are interleaved, and only several can be."""
    settings = facts.settings
    if settings.pipeline == 1:
        return
    if (settings.model.num_chunks > 1) != (settings.schedule == "interleaved"):
        yield facts.error(
            "schedule" if facts.is_stated("schedule") else "model.num_chunks",
            f"{facts.cite('model.num_chunks')} does not go with {facts.cite('schedule')}; either "
            "schedule='interleaved' with model.num_chunks of 2 or more, or model.num_chunks=1",
        )


def interleaving_needs_rounds(facts: RuleContext) -> Iterator[Finding]:
    """Interleaved 1F1B sends micro-batches in rounds of PIPELINE (Narayanan et al. 2021)."""
    settings = facts.settings
    stages, parts = settings.pipeline, settings.num_micro_batches
    if stages > 1 and settings.schedule == "interleaved" and parts % stages:
        yield facts.error(
            "num_micro_batches",
            f"{facts.cite('num_micro_batches')} is not a multiple of {facts.cite('pipeline')}, "
            f"which the interleaved schedule needs; nearest: {nearest_multiples(parts, stages)}",
        )


def micro_batches_fill_the_pipeline(facts: RuleContext) -> Iterator[Finding]:
    """The bubble, (p - 1) / (v m + p - 1) of a step for m micro-batches through p stages of v
    chunks (Narayanan et al. 2021, section 2.2), wants many micro-batches. A third of a micro-batch
    counts where weight gradients fill it (Qi et al. 2023): v is 3."""
    settings = facts.settings
    stages = settings.pipeline
    chunks = 3 if settings.schedule == "zero_bubble" else settings.model.num_chunks
    parts = settings.num_micro_batches * settings.gradient_accumulation
    bubble = _bubble(stages, chunks, parts)
    if bubble > WORTH_A_WARNING:
        enough = -(-3 * (stages - 1) // chunks)  # where the bubble is a quarter
        enough = -(-enough // stages) * stages
        yield facts.warning(
            "num_micro_batches",
            f"{facts.cite('num_micro_batches')} leaves {facts.cite('pipeline')} stages idle "
            f"{bubble:.0%} of the time; {enough} would leave {_bubble(stages, chunks, enough):.0%}",
        )


def chunks_need_a_pipeline(facts: RuleContext) -> Iterator[Finding]:
    """Chunks are of a pipeline rank."""
    if facts.settings.pipeline == 1 and facts.settings.model.num_chunks > 1:
        yield facts.note(
            "model.num_chunks",
            f"{facts.cite('model.num_chunks')} has no effect with {facts.cite('pipeline')}",
        )


def _bubble(stages: int, chunks: int, micro_batches: int) -> float:
    return (stages - 1) / (chunks * micro_batches + stages - 1)


RULES = (
    every_chunk_has_a_layer,
    chunks_need_the_interleaved_schedule,
    interleaving_needs_rounds,
    micro_batches_fill_the_pipeline,
    chunks_need_a_pipeline,
)
