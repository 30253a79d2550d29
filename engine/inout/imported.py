"""A folder with a model from elsewhere in our form, and a config to train it with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from engine.errors import Refused
from engine.inout.draft import draft
from engine.inout.trained import OF_TRAINING, Trained
from engine.inout.writing import size_of, write_safetensors
from engine.run_folder import RunFolder
from models.presets import GPT2_VOCABULARY


def bring_in(model: Trained, out: Path) -> None:
    """Write model.safetensors, config.py and, where it is known, tokenizer.json to a new folder.
    Numbers keep their type.

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
        folder.config.write_text(config_for(model, out), encoding="utf-8")
        if model.tokenizer is not None:
            folder.tokenizer.write_text(json.dumps(model.tokenizer), encoding="utf-8")


def config_for(model: Trained, home: Path) -> str:
    """A config that trains the model as it is, for the user to go on from."""
    sizes = {name: value for name, value in asdict(model.sizes).items() if name not in OF_TRAINING}
    fields = [f"    {name}={value!r}," for name, value in sizes.items()]
    known = model.tokenizer is not None or model.sizes.vocab_size >= GPT2_VOCABULARY
    if known:
        data = ["NUM_EPOCHS = 1", "", 'data = dict(type="text", tokenizer="gpt2")']
    else:
        data = ["MAX_STEPS = 100", "", 'data = dict(type="synthetic")  # its words are not known']
    lines = [
        f"# The model of {model.path.name}. To train it on a text of yours:",
        f"# cuboid train {home}/config.py --init-from {home} data.path=my.txt",
        "BATCH_SIZE = 8",
        f"SEQ_LEN = {model.sizes.block_size}",
        *data,
        'optimizer = dict(type="adamw", lr=3e-5)',
        "model = dict(",
        *fields,
        ")",
    ]
    return "\n".join(lines) + "\n"
