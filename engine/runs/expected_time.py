"""The expected time of a run on a CPU, and a smaller run for a user whose run would take hours.

Times appear in messages only: no computation depends on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.estimate.flops import flops_per_token

if TYPE_CHECKING:
    from engine.config.schema import Settings

HOUR = 3600.0
MINUTES = 10
"""The duration of the smaller run that is proposed."""
FEWEST_TOKENS = 64  # shorter samples give no readable text
GUESSED_RATE = 30e9
"""FLOP/s per core in training, used until steps are measured. The demo reached 15e9 to 70e9 on two
cores of 2025, with four ranks and with one; large models reach 100e9."""


def guessed_seconds(settings: Settings, tokens_per_step: int, cores: int) -> float:
    """Estimate the seconds per step from the step's FLOPs; accurate to a factor of about three."""
    flops = flops_per_token(settings.model, settings.seq_len) * tokens_per_step
    return flops / (GUESSED_RATE * cores)


def smaller_run(
    settings: Settings, seconds_per_step: float, steps_left: int, *, guessed: bool = False
) -> str | None:
    """Advise the user of a run of over an hour: return overrides with which the run ends within
    MINUTES minutes; None for a shorter run. ``guessed``: ``seconds_per_step`` was estimated, not
    measured."""
    left, target = seconds_per_step * steps_left, 60.0 * MINUTES
    if left <= HOUR:
        return None
    days = f"{left / 24 / HOUR:,.1f} days" if left > 48 * HOUR else f"{left / HOUR:,.1f} hours"
    advice = (
        f"note: about {days} left at {seconds_per_step:.3g} s per step on this CPU"
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
    """Halve the layers, then the sequence length, until the run has at most the fraction ``target``
    of its FLOPs. Return the overrides and the fraction of the FLOPs that is left.

    Widths, which the layout must divide, are unchanged, and so are the layers of a pipeline.
    """
    layers, length = settings.model.n_layer, settings.seq_len
    original = _run_flops(settings, layers, length)
    while _run_flops(settings, layers, length) > target * original:
        if settings.pipeline == 1 and layers >= 4:
            layers //= 2
        elif settings.max_steps is not None and length >= 2 * FEWEST_TOKENS:
            length //= 2  # an epoch of shorter samples has more of them
        else:
            break
    overrides = []
    if layers != settings.model.n_layer:
        overrides.append(f"model.n_layer={layers}")
    if length != settings.seq_len:
        overrides.append(f"SEQ_LEN={length}")
    return overrides, _run_flops(settings, layers, length) / original


def _run_flops(settings: Settings, layers: int, length: int) -> int:
    """Return the run's FLOPs, up to a factor that layers and length do not affect."""
    model = settings.model.model_copy(update={"n_layer": layers})
    samples = length if settings.max_steps is not None else settings.seq_len
    return samples * flops_per_token(model, length)
