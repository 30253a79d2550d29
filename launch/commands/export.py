"""Export a model as a Hugging Face folder, safetensors or state dict."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import get_args

from engine import discover
from engine.config.setting_types import Precision
from engine.runs.lookup import run_with_weights
from launch.arguments import add_step, file_or_folder, path
from launch.number_types import byte_size

EXAMPLES = (
    "cuboid export --to hf --out gpt2-hf",
    "cuboid export runs/demo-20260101-120000 --to safetensors --step best",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add [RUN] and the options that choose the weights, the format and the path."""
    parser.add_argument(
        "run",
        nargs="?",
        type=file_or_folder,
        help="run folder, checkpoint folder, or a folder that cuboid import wrote; default: the "
        "newest run",
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=discover.module_names("engine.inout.exports"),
        help="hf: a Hugging Face GPT-2 folder; safetensors: a file with cuboid's parameter names; "
        "pt: a state dict with these names, by torch.save",
    )
    add_step(parser)
    parser.add_argument(
        "--out", type=path, metavar="PATH", help="path to write; default: a name in RUN/exports"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=get_args(Precision),
        help="dtype of the exported weights; default: float32",
    )
    parser.add_argument(
        "--shard-size",
        default="5GB",
        type=byte_size,
        metavar="SIZE",
        help="hf: maximum size of a weights file; default: 5GB",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export at --out")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Export the model, print its path and return 0. Raises UserError, RunError."""
    source = args.run or run_with_weights(None).path
    # Only now, as these import torch
    from engine.inout.export import ExportOptions, export, exporter
    from engine.inout.open_model import open_saved_model
    from engine.training.build import DTYPES
    from models.parameters import parameter_count

    model = open_saved_model(source, args.step)
    options = ExportOptions(dtype=DTYPES[args.dtype][1], shard_bytes=args.shard_size)
    written = export(model, exporter(args.to), options, out=args.out, force=args.force)
    count = parameter_count(model.config)
    print(f"{written}: {count:,} parameters in {args.dtype}, from {model.path}")
    if model.length < model.config.block_size:
        print(
            f"positions from {model.length:,} on are untrained; use at most {model.length:,} "
            "tokens of context"
        )
    if args.to == "hf" and model.tokenizer is None:
        print("exported without a tokenizer: the run was trained on token ids, not on text")
    elif args.to == "hf" and (model.tokenizer or {}).get("type") == "sentencepiece":
        print("tokenizer.model is the run's SentencePiece model; AutoTokenizer does not load it")
    return 0
