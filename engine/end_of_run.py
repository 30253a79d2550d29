"""What a run ends with: a sample of its text, where things are, what to try next."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from shlex import quote

import torch

from engine.checkpoint.directory import CheckpointDirectory
from engine.config.schema import DataSettings
from engine.data.tokenizer import Tokenizer
from engine.errors import RunError, UserError
from engine.generate import Sampling, generate_text, load_model
from engine.inout.open_model import open_saved_model
from engine.inout.tensor_writers import total_bytes
from engine.runs.folder import RunFolder

SAMPLE = Sampling(tokens=300, temperature=0.8, top_k=50)
SAMPLE_SECONDS = 5.0
"""A large model on a CPU writes slowly, and the others wait."""
SAMPLE_BYTES = 2 << 30
"""Of a larger model there is no sample: it is made whole beside the one that was trained."""


def print_end_of_run(
    folder: RunFolder,
    device: torch.device,
    print_line: Callable[[str], None],
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
        _print_sample(folder, device, print_line)
    print_line("")
    if validation:
        print_line(f"validation  {validation}")
    print_line(f"weights     {folder.weights}")
    print_line(f"log         {folder.log}")
    if folder.has_curves:
        print_line(f"TensorBoard tensorboard --logdir {quote(str(folder.tensorboard))}")
    if not sample and several_machines:
        print_line(f"continue    start it again on all machines, with --resume {run}")
    elif not sample:
        print_line(f"continue    {command} train --resume {run}")
    elif CheckpointDirectory(folder.checkpoints).steps():
        print_line(f"train more  {command} train --resume {run} MAX_STEPS={2 * steps}")
    print_line(f"evaluate    {command} evaluate {run}{evaluation}")
    print_line(f"export      {command} export {run} --to hf")
    if folder.tokenizer.is_file():
        print_line(f"more text   {command} generate {run}")


def evaluate_options(data: DataSettings) -> str:
    """Return the options that cuboid evaluate needs for a run on this data."""
    if data.validation > 0:
        return ""
    return " --split train" + (" --samples 100" if data.type == "synthetic" else "")


def _print_sample(
    folder: RunFolder, device: torch.device, print_line: Callable[[str], None]
) -> None:
    """A run that was trained has not failed where there can be none."""
    with suppress(UserError, RunError, torch.OutOfMemoryError):
        saved = open_saved_model(folder.weights)
        if total_bytes(saved.shapes, saved.dtype) > SAMPLE_BYTES:
            return
        model, tokenizer = load_model(saved, device)
        prompt = _sample_prompt(tokenizer)
        until, pieces = time.monotonic() + SAMPLE_SECONDS, [prompt]
        for piece in generate_text(model, tokenizer, prompt, SAMPLE):
            pieces.append(piece)
            if time.monotonic() > until:
                break
        print_line("\nA sample of what it writes:\n")
        print_line("".join(pieces))


def _sample_prompt(tokenizer: Tokenizer) -> str:
    """Something to go on from, in the letters that the text has."""
    try:
        tokenizer.encode("The ")
    except UserError:
        return ""
    return "The "
