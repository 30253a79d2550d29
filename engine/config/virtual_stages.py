"""The virtual stages of a pipeline: chunks per rank, and the layers of each stage."""

from __future__ import annotations

from engine.config.schema import Settings
from models.config import GPTConfig
from models.stage_split import virtual_stages


def chunks_per_rank(settings: Settings, pipeline_ranks: int) -> int:
    """Return the number of model chunks of a rank; the whole model is one chunk without a
    pipeline."""
    return settings.model.num_chunks if pipeline_ranks > 1 else 1


def virtual_stages_of(settings: Settings, pipeline_ranks: int) -> list[range]:
    """Return the layers of each virtual stage."""
    return virtual_stages(
        GPTConfig.of(settings.model),
        settings.seq_len,
        pipeline_ranks * chunks_per_rank(settings, pipeline_ranks),
        balanced=settings.stages == "balanced",
    )
