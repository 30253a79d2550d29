"""What a run ends with: a sample of its text, where things are, what to try next."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from shlex import quote

import torch

from engine.data.tokenizer import Tokenizer
from engine.errors import Failed, Refused
from engine.generate import Sampling, continue_text, open_model
from engine.inout.opening import open_trained
from engine.inout.writing import size_of
from engine.run_folder import RunFolder

SAMPLE = Sampling(tokens=300, temperature=0.8, top_k=50)
SAMPLE_SECONDS = 5.0
"""A large model on a CPU writes slowly, and the others wait."""
SAMPLE_BYTES = 2 << 30
"""Of a larger model there is no sample: it is made whole beside the one that was trained."""


def epilogue(
    folder: RunFolder, device: torch.device, say: Callable[[str], None], *, sample: bool
) -> None:
    """Tell it, a line at a time."""
    if sample:
        _sample(folder, device, say)
    say(f"\nweights     {folder.weights}")
    say(f"log         {folder.log}")
    if folder.has_curves:
        say(f"TensorBoard tensorboard --logdir {folder.tensorboard}")
    if folder.tokenizer.is_file():
        say(f"more text   cuboid generate {quote(str(folder.path))}")
        say("            (./run.sh before it, where .venv is not active)")


def _sample(folder: RunFolder, device: torch.device, say: Callable[[str], None]) -> None:
    """A run that was trained has not failed where there can be none."""
    with suppress(Refused, Failed, torch.OutOfMemoryError):
        trained = open_trained(folder.weights)
        if size_of(trained.shapes, trained.dtype) > SAMPLE_BYTES:
            return
        model, words = open_model(trained, device)
        prompt = _prompt(words)
        until, pieces = time.monotonic() + SAMPLE_SECONDS, [prompt]
        for piece in continue_text(model, words, prompt, SAMPLE):
            pieces.append(piece)
            if time.monotonic() > until:
                break
        say("\nA sample of what it writes:\n")
        say("".join(pieces))


def _prompt(words: Tokenizer) -> str:
    """Something to go on from, in the letters that the text has."""
    try:
        words.encode("The ")
    except Refused:
        return ""
    return "The "
