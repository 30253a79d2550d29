"""The last output of a run: a sample of text, the paths of the run's files, commands to try
next."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from shlex import quote
from typing import TYPE_CHECKING

import torch

from engine.checkpoint.directory import CheckpointDirectory
from engine.config.schema import Settings
from engine.config.sections.data import ENDLESS_TYPES
from engine.config.splits import can_validate
from engine.data.tokenizer import IMAGES, Tokenizer, read_saved
from engine.errors import RunError, UserError
from engine.generation.text import SamplingOptions, generate_text, load_model
from engine.inout.open_model import open_saved_model
from engine.inout.tensor_writers import total_bytes
from engine.runs.folder import RunFolder
from engine.runs.invocation import cuboid

if TYPE_CHECKING:
    from engine.runs.reporter import Reporter
    from engine.training.trainer import Trainer

SAMPLE = SamplingOptions(tokens=300, temperature=0.8, top_k=50)
SAMPLE_SECONDS = 5.0
"""The limit of generation, which is slow for a large model on a CPU while other ranks wait."""
SAMPLE_BYTES = 2 << 30
"""The largest model that is sampled, bytes: it needs an unsharded copy beside the trained one."""


def print_end_of_run(
    trainer: Trainer, folder: RunFolder, reporter: Reporter, *, finished: bool
) -> None:
    """Print the paths of the run's files and commands to paste. If all steps are done
    (``finished``), also print a sample of text, and replace the command that continues the run by
    the command that trains it further."""
    world, print_line, command = trainer.world, reporter.print_line, cuboid()
    run = quote(str(folder.path))
    if finished:
        _print_sample(folder, world.device, print_line)
    print_line("")
    if validation := _last_validation(trainer, reporter):
        print_line(f"validation  {validation}")
    print_line(f"weights     {folder.weights}")
    print_line(f"log         {folder.log}")
    for title, command_or_address in reporter.views:
        print_line(f"{title:<11} {command_or_address}")
    if not finished and world.local_size < world.size:
        print_line(f"continue    start it again on all machines with --resume {run}")
    elif not finished:
        print_line(f"continue    {command} train --resume {run}")
    elif CheckpointDirectory(folder.checkpoints).steps():
        print_line(f"train more  {command} train --resume {run} MAX_STEPS={2 * trainer.steps}")
    options = evaluate_options(trainer.plan.settings)
    print_line(f"evaluate    {command} evaluate {run}{options}")
    print_line(f"export      {command} export {run} --to hf")
    if (saved := read_saved(folder.tokenizer)) is not None:
        what = "images     " if saved["type"] == IMAGES else "more text  "
        print_line(f"{what} {command} generate {run}")


def _last_validation(trainer: Trainer, reporter: Reporter) -> str:
    """Format the loss and the step of the last validation; "" if there was none."""
    last = reporter.validation
    if last is None or last.val_loss is None:
        return ""
    return f"loss {last.val_loss:.4f} after step {last.step:,}, over {trainer.batches.validation}"


def evaluate_options(settings: Settings) -> str:
    """Return the options that cuboid evaluate needs for a run with these settings."""
    if can_validate(settings):
        return ""
    return " --split train" + (" --samples 100" if settings.data.type in ENDLESS_TYPES else "")


def _print_sample(
    folder: RunFolder, device: torch.device, print_line: Callable[[str], None]
) -> None:
    """Print a sample of text by the saved model, if it is small enough. Ignore errors, because the
    run itself has succeeded."""
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
        print_line("\nA sample of its text:\n")
        print_line("".join(pieces))


def _sample_prompt(tokenizer: Tokenizer) -> str:
    """Return the prompt "The ", or "" if the tokenizer cannot encode it."""
    try:
        tokenizer.encode("The ")
    except UserError:
        return ""
    return "The "
