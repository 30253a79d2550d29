"""What to say to someone whose run would take all day."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.flops import flops_per_token

if TYPE_CHECKING:
    from engine.config.schema import Settings

HOUR = 3600.0
FEWEST_TOKENS = 64  # shorter samples than this teach nothing worth looking at


def smaller_run(settings: Settings, seconds_per_step: float, steps_left: int) -> str | None:
    """Overrides under which a run would end within an hour; None if it will anyway."""
    left = seconds_per_step * steps_left
    if left <= HOUR:
        return None
    steps = max(1, int(HOUR / seconds_per_step))
    advice = (
        f"{left / HOUR:,.1f} hours to go at {seconds_per_step:.3g} s a step on this CPU; "
        f"for a smaller run: MAX_STEPS={steps}"
    )
    overrides, share = _smaller_model(settings, HOUR / left)
    if share * left <= HOUR:
        advice += f", or {' '.join(overrides)} (about {share * left / 60:.0f} minutes)"
    return advice


def _smaller_model(settings: Settings, target: float) -> tuple[list[str], float]:
    """Halve layers, then sequence length, until the run's FLOPs are at most a ``target`` share.

    Widths stay, and with them what the layout divides; so do layers that a pipeline shares out.
    """
    layers, length = settings.model.n_layer, settings.seq_len
    whole = _run_flops(settings, layers, length)
    while _run_flops(settings, layers, length) > target * whole:
        if settings.pipeline == 1 and layers >= 4:
            layers //= 2
        elif settings.max_steps is not None and length >= 2 * FEWEST_TOKENS:
            length //= 2  # where epochs end the run, shorter samples are only more of them
        else:
            break
    overrides = []
    if layers != settings.model.n_layer:
        overrides.append(f"model.n_layer={layers}")
    if length != settings.seq_len:
        overrides.append(f"SEQ_LEN={length}")
    return overrides, _run_flops(settings, layers, length) / whole


def _run_flops(settings: Settings, layers: int, length: int) -> int:
    """FLOPs of the run, up to a factor that layers and length do not change."""
    model = settings.model.model_copy(update={"n_layer": layers})
    samples = length if settings.max_steps is not None else settings.seq_len
    return samples * flops_per_token(model, length)
