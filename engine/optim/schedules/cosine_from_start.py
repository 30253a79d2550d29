"""Cosine decay from the first step to the floor, multiplied by the warm-up: the rate is below the
peak in every step."""

from __future__ import annotations

from engine.optim.schedules import cosine

AFTER_WARMUP = False
decay = cosine.decay
