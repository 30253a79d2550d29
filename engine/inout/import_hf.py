"""A folder with a model from elsewhere in our form, and a config to train it with."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path

from engine.atomic_write import draft
from engine.errors import Refused
from engine.inout.saved_model import OF_TRAINING, Trained
from engine.inout.tensor_writers import size_of, write_safetensors
from engine.runs.folder import RunFolder
from models.presets import GPT2_VOCABULARY


def bring_in(model: Trained, out: Path) -> str:
    """Write model.safetensors, a config and, where it is known, tokenizer.json to a new folder;
    the command that trains it. Numbers keep their type.

    Raises:
        Refused: there is something at ``out``, or the model is not what it says.
        Failed: it could not be written.
    """
    with draft(out, needs=size_of(model.shapes, model.dtype)) as new:
        new.mkdir()
        folder = RunFolder(new)
        try:
            write_safetensors(
                folder.weights,
                model.read(),
                model.shapes,
                dtype=model.dtype,
                metadata=model.metadata,
            )
        except ValueError as error:
            raise Refused(f"{model.path}: {error}") from None
        (new / f"{out.name}.py").write_text(config_for(model, out), encoding="utf-8")
        if model.tokenizer is not None:
            folder.tokenizer.write_text(json.dumps(model.tokenizer), encoding="utf-8")
    return training(model, out)


def config_for(model: Trained, home: Path) -> str:
    """A config that trains the model as it is, for the user to go on from."""
    sizes = {name: value for name, value in asdict(model.sizes).items() if name not in OF_TRAINING}
    fields = [f"    {name}={value!r}," for name, value in sizes.items()]
    if _has_words(model):
        words = (model.tokenizer or {"type": "gpt2"})["type"]
        data = ["NUM_EPOCHS = 1", "", f'data = dict(tokenizer="{words}")']
    else:
        data = ["MAX_STEPS = 100", "", 'data = dict(type="synthetic")  # its words are not known']
    lines = [
        f"# The model of {model.path.name}. To train it further:",
        f"# {training(model, home)}",
        "BATCH_SIZE = 8",
        f"SEQ_LEN = {model.length}",
        *data,
        'optimizer = dict(type="adamw", lr=3e-5)',
        "model = dict(",
        *fields,
        ")",
    ]
    return "\n".join(lines) + "\n"


def training(model: Trained, home: Path) -> str:
    """The command that trains it, on a text where its words are known."""
    command = ["cuboid", "train", f"{home / home.name}.py", "--init-from", f"{home}"]
    return shlex.join([*command, "data.path=my.txt"] if _has_words(model) else command)


def _has_words(model: Trained) -> bool:
    """Whether it is known what its ids stand for: they are GPT-2's where there are as many."""
    return model.tokenizer is not None or model.sizes.vocab_size >= GPT2_VOCABULARY
