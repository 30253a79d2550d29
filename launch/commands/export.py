"""Write a model as a Hugging Face folder, safetensors or state dict."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import get_args

from engine import discover
from engine.config.schema import Precision
from engine.runs.resolve import run_with_weights
from launch.arguments import add_step, byte_size, file_or_folder, path

EXAMPLES = (
    "cuboid export --to hf --out gpt2-hf",
    "cuboid export runs/demo-20260101-120000 --to safetensors --step best",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[RUN], what of it, and what to make of it."""
    parser.add_argument(
        "run",
        nargs="?",
        type=file_or_folder,
        help="a run's folder, one of its checkpoints, or what cuboid import left; default: the "
        "newest run",
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=discover.module_names("engine.inout.exports"),
        help="a Hugging Face GPT-2 folder, a file of safetensors by our names, or what torch.save "
        "makes of them",
    )
    add_step(parser)
    parser.add_argument(
        "--out", type=path, metavar="PATH", help="what to write; default: in RUN/exports"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=get_args(Precision),
        help="of the numbers; default: float32",
    )
    parser.add_argument(
        "--shard-size",
        default="5GB",
        type=byte_size,
        metavar="SIZE",
        help="hf: how large a file of weights may be; default: 5GB",
    )
    parser.add_argument("--force", action="store_true", help="replace what an export left there")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Write it and say where it is. Raises UserError, RunError."""
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
            f"positions from {model.length:,} on are untrained: give it at most {model.length:,} "
            "tokens at a time"
        )
    if args.to == "hf" and model.tokenizer is None:
        print("without a tokenizer: its ids stand for no text")
    return 0
