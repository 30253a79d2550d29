"""Import a Hugging Face GPT-2, to train it further."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from launch.arguments import folder, path

IMPORTED = Path("imported")

EXAMPLES = ("cuboid import path/to/gpt2 --from hf",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add PATH, its format and the folder to write."""
    parser.add_argument("path", type=folder, help="folder of the model")
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=["hf"],
        help="format of the model: hf, a Hugging Face GPT-2 folder",
    )
    parser.add_argument(
        "--out", type=path, metavar="DIR", help=f"new folder to write; default: {IMPORTED}/NAME"
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Import the model, print its folder and the command that trains it, and return 0. Raises
    UserError, RunError."""
    out = args.out or IMPORTED / args.path.resolve().name
    # Only now, as these import torch
    from engine.inout.hf_folder import HFModel
    from engine.inout.import_hf import import_model
    from models.parameters import parameter_count

    model = HFModel.open(args.path)
    command = import_model(model, out)
    print(f"{out}: {parameter_count(model.config):,} parameters, from {args.path}")
    print(command)
    return 0
