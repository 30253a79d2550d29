"""How long a run will take on a CPU, and a smaller one for a user whose run would take all day.

Times go into messages only: nothing that is computed depends on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.estimate.flops import flops_per_token

if TYPE_CHECKING:
    from engine.config.schema import Settings

HOUR = 3600.0
MINUTES = 10
"""How long the smaller run takes that is proposed."""
FEWEST_TOKENS = 64  # shorter samples than this teach nothing worth looking at
GUESSED_RATE = 30e9
"""FLOP/s of a core in training, before steps are measured. The demo had 15 to 70 on two cores of
2025, from four ranks to one; large models come to 100."""


def guessed_seconds(settings: Settings, tokens_per_step: int, cores: int) -> float:
    """Seconds a step from its FLOPs and a usual rate; within a factor of three or so."""
    flops = flops_per_token(settings.model, settings.seq_len) * tokens_per_step
    return flops / (GUESSED_RATE * cores)


def smaller_run(
    settings: Settings, seconds_per_step: float, steps_left: int, *, guessed: bool = False
) -> str | None:
    """Overrides under which a run of over an hour would end within minutes; None for a shorter
    one. ``guessed``: nothing was measured yet."""
    left, target = seconds_per_step * steps_left, 60.0 * MINUTES
    if left <= HOUR:
        return None
    days = f"{left / 24 / HOUR:,.1f} days" if left > 48 * HOUR else f"{left / HOUR:,.1f} hours"
    advice = (
        f"note: about {days} to go at {seconds_per_step:.3g} s a step on this CPU"
        + (" (a guess from FLOPs until steps are measured)" if guessed else "")
        + f"; for a run of {MINUTES} minutes: MAX_STEPS={max(1, int(target / seconds_per_step))}"
    )
    overrides, share = _smaller_model(settings, target / left)
    if overrides:
        steps = int(target / (seconds_per_step * share))
        if steps < steps_left:
            overrides.append(f"MAX_STEPS={max(1, steps)}")
        advice += f", or a smaller model: {' '.join(overrides)}"
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
