"""List parameters and bytes on disk of presets and configs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from engine.config.sections.model import ModelSettings
from engine.errors import UserError
from engine.formatting import format_bytes
from engine.plan import make_plan
from launch.arguments import add_config, files_and_overrides
from launch.number_types import positive
from launch.vocabulary import size_on_this_machine, unknown_size
from models.parameters import parameter_count
from models.presets import PRESETS

EXAMPLES = (
    "cuboid sizes",
    "cuboid sizes gpt2_small languini-xl --seq-len 512",
    "cuboid sizes gpt_configs/gpt2_2d.py model.n_layer=24",
)
BYTES = {"float64": 8, "float32": 4, "bf16, fp16": 2}
"""Bytes of a parameter in a file, by precision."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add [NAME ...], KEY=VALUE and the options."""
    add_config(parser, required=False, what="presets (default: all) and config files")
    parser.add_argument(
        "--seq-len",
        type=positive,
        default=1024,
        metavar="N",
        help="positions of presets that state none; default: 1024",
    )
    parser.add_argument("--json", action="store_true", help="print JSON with exact numbers")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print a line per preset or config and return 0. A vocabulary that follows from data that
    cannot be read here is reported. Raises UserError, ConfigError."""
    names, overrides = files_and_overrides(args)
    notes: list[str] = []
    models = {
        str(name): _model(str(name), overrides, environ, seq_len=args.seq_len, note=notes.append)
        for name in names or PRESETS
    }
    if overrides and not any(_is_config(name) for name in models):
        raise UserError(f"{overrides[0]} needs a config file: presets have fixed sizes")
    if args.json:
        print(json.dumps({name: _sizes(model) for name, model in models.items()}, indent=2))
    else:
        print(*_table(models), sep="\n")
        if not names:
            print("\nConfig files: cuboid sizes gpt_configs/*.py")
    for text in notes:
        print(f"note: {text}", file=sys.stderr)
    return 0


def _is_config(name: str) -> bool:
    return name not in PRESETS


def _model(
    name: str,
    overrides: Sequence[str],
    environ: Mapping[str, str],
    *,
    seq_len: int,
    note: Callable[[str], None],
) -> ModelSettings:
    """Return the model of a preset or of a config file; ``note`` receives a line about a vocabulary
    that is unknown here. Raises UserError, ConfigError."""
    if not _is_config(name):
        return ModelSettings.model_validate({"block_size": seq_len, **PRESETS[name].settings})
    if not Path(name).exists():
        raise UserError(f"{name} is neither a preset nor a file; cuboid sizes lists the presets")
    plan = make_plan(name, gpus=None, overrides=overrides, environ=environ)
    if plan.undetermined:
        size = size_on_this_machine(plan, environ)
        if isinstance(size, UserError):
            note(unknown_size(plan, size))
        else:
            plan = plan.with_vocabulary(size)
    return plan.settings.model


def _sizes(model: ModelSettings) -> dict[str, object]:
    count = parameter_count(model)
    shape = {"n_layer": model.n_layer, "n_head": model.n_head, "n_embd": model.n_embd}
    shape |= {"block_size": model.block_size, "vocab_size": model.vocab_size}
    return {**shape, "parameters": count, "bytes": {of: n * count for of, n in BYTES.items()}}


def _table(models: Mapping[str, ModelSettings]) -> Iterator[str]:
    """Yield the header and a line per model. Bytes are of the parameters of an exported file."""
    width = max(len("model"), *map(len, models))
    row = f"{{:{width}}} {{:>6}} {{:>5}} {{:>6}} {{:>6}} {{:>7}} {{:>15}}" + " {:>10}" * len(BYTES)
    yield row.format("model", "layers", "heads", "width", "posit.", "vocab", "parameters", *BYTES)
    for name, model in models.items():
        count = parameter_count(model)
        files = (format_bytes(n * count) for n in BYTES.values())
        shape = (model.n_layer, model.n_head, model.n_embd, model.block_size, model.vocab_size)
        yield row.format(name, *shape, f"{count:,}", *files)
