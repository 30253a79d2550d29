"""What a run ends with: a sample of its text, where things are, what to try next."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from shlex import quote

import torch

from engine.checkpoint.directory import Shelf
from engine.config.schema import Data
from engine.data.tokenizer import Tokenizer
from engine.errors import Failed, Refused
from engine.generate import Sampling, continue_text, open_model
from engine.inout.open_model import open_trained
from engine.inout.tensor_writers import size_of
from engine.runs.folder import RunFolder

SAMPLE = Sampling(tokens=300, temperature=0.8, top_k=50)
SAMPLE_SECONDS = 5.0
"""A large model on a CPU writes slowly, and the others wait."""
SAMPLE_BYTES = 2 << 30
"""Of a larger model there is no sample: it is made whole beside the one that was trained."""


def epilogue(
    folder: RunFolder,
    device: torch.device,
    say: Callable[[str], None],
    *,
    command: str,
    sample: bool,
    steps: int,
    evaluation: str = "",
    validation: str = "",
    several_machines: bool = False,
) -> None:
    """Print where things are and the commands that go on from here, which work when pasted.

    ``command`` starts cuboid. ``sample``: training is done, and a sample of text is wanted; if not,
    the command that continues it comes first. ``steps`` are those of the whole run. ``evaluation``:
    the options that cuboid evaluate needs. ``validation`` is the last one in words.
    """
    run = quote(str(folder.path))
    if sample:
        _sample(folder, device, say)
    say("")
    if validation:
        say(f"validation  {validation}")
    say(f"weights     {folder.weights}")
    say(f"log         {folder.log}")
    if folder.has_curves:
        say(f"TensorBoard tensorboard --logdir {quote(str(folder.tensorboard))}")
    if not sample and several_machines:
        say(f"continue    start it again on all machines, with --resume {run}")
    elif not sample:
        say(f"continue    {command} train --resume {run}")
    elif Shelf(folder.checkpoints).steps():
        say(f"train more  {command} train --resume {run} MAX_STEPS={2 * steps}")
    say(f"evaluate    {command} evaluate {run}{evaluation}")
    say(f"export      {command} export {run} --to hf")
    if folder.tokenizer.is_file():
        say(f"more text   {command} generate {run}")


def evaluate_options(data: Data) -> str:
    """Return the options that cuboid evaluate needs for a run on this data."""
    if data.validation > 0:
        return ""
    return " --split train" + (" --samples 100" if data.type == "synthetic" else "")


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
