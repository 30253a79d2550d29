"""Import a model of another project, to train it further."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from engine import discover
from launch import arguments
from launch.number_types import positive

IMPORTED = Path("imported")

EXAMPLES = (
    "cuboid import path/to/gpt2 --from hf",
    "cuboid import path/gpt.pt --from mingpt --n-head 8 --codebook path/c.pt",
    "cuboid import path/gpt.pt --from languini --n-head 12 --tokenizer path/spm",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add PATH, its format, the folder to write, and the parts that some formats do not store."""
    parser.add_argument("path", type=arguments.file_or_folder, help="folder or file of the model")
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=discover.module_names("engine.inout.imports"),
        help="format of the model: hf, a Hugging Face GPT-2 folder; mingpt, a checkpoint of an "
        "image GPT of minGPT or TorchShard, or of minGPT with Lightning; languini, a checkpoint "
        "of Languini's GPT",
    )
    parser.add_argument(
        "--out",
        type=arguments.path,
        metavar="DIR",
        help=f"new folder to write; default: {IMPORTED}/NAME",
    )
    parser.add_argument(
        "--n-head",
        type=positive,
        metavar="N",
        help="number of attention heads, which the files of mingpt and languini do not store",
    )
    parser.add_argument(
        "--codebook",
        type=arguments.file_or_folder,
        metavar="FILE",
        help="colours of an image GPT, such as TorchShard's c.pt, or a .npy file",
    )
    parser.add_argument(
        "--tokenizer",
        type=arguments.file_or_folder,
        metavar="FILE",
        help="SentencePiece model of a GPT of text",
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Import the model, print its folder and the command that trains it, and return 0. Raises
    UserError, RunError."""
    path = args.path.resolve()
    out = args.out or IMPORTED / (path.stem if path.is_file() else path.name)
    # Only now, as these import torch
    from engine.inout.import_model import ImportOptions, import_model, importer
    from models.parameters import parameter_count

    options = ImportOptions(n_head=args.n_head, codebook=args.codebook, tokenizer=args.tokenizer)
    model = importer(args.source).open_model(args.path, options)
    command = import_model(model, out)
    print(f"{out}: {parameter_count(model.config):,} parameters, from {args.path}")
    print(command)
    return 0
