"""Convert texts or JSON lines to token shards, on all cores.

A repeated command continues where it was interrupted. data.type='tokens' reads
DIR. With --layout languini, DIR gets the file list of a split and a folder of
shards, one per input file, which data.type='lanes' reads."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

from engine.data.tokenizer import names
from engine.formatting import format_duration, plural
from engine.world.processor import usable_cores
from launch.arguments import file_or_folder, path
from launch.number_types import positive

EXAMPLES = (
    "cuboid prepare path/books --tokenizer gpt2 --output data/books",
    "cuboid prepare path/a.jsonl.gz --key content --tokenizer bytes --output web",
    "cuboid prepare path/books --tokenizer gpt2 --output data --layout languini",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the inputs, the tokenizer and the output."""
    parser.add_argument(
        "path",
        nargs="+",
        type=file_or_folder,
        help="a file, or a folder with all files below it: text, JSON lines or JSON arrays, also "
        "compressed",
    )
    parser.add_argument("--tokenizer", required=True, choices=names(), help="as data.tokenizer")
    parser.add_argument(
        "--tokenizer-path", type=path, metavar="FILE", help="as data.tokenizer_path"
    )
    parser.add_argument(
        "--output", type=path, required=True, metavar="DIR", help="folder to write or to continue"
    )
    parser.add_argument("--layout", choices=["own", "languini"], default="own", help="default: own")
    parser.add_argument(
        "--split",
        metavar="NAME",
        default="train",
        help="name of the split, in the languini layout; default: train",
    )
    parser.add_argument("--key", default="text", help="as data.key; default: text")
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="processes; default: one per core"
    )
    parser.add_argument(
        "--shard-tokens",
        type=positive,
        metavar="N",
        help="least tokens of a shard, except the last, in the own layout; default: 16,777,216",
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Write the shards, print counts and hashes, and return 0. Raises UserError, RunError."""
    # Only now: NumPy and the readers of data are not needed for help
    from engine.data.input_files.data_file import data_files
    from engine.data.source import default_cache
    from engine.prepare.output_formats import SHARD_TOKENS, LanguiniFormat, OutputFormat, OwnFormat
    from engine.prepare.prepare import TokenizerChoice, prepare
    from launch.progress_lines import ProgressLines

    records = default_cache(environ) / "digests"
    files = data_files([str(each) for each in args.path], records=records)
    choice = TokenizerChoice(
        name=args.tokenizer, path=args.tokenizer_path and str(args.tokenizer_path)
    )
    output: OutputFormat = OwnFormat(args.output, args.shard_tokens or SHARD_TOKENS)
    if args.layout == "languini":
        vocabulary = args.tokenizer_path.stem if args.tokenizer_path else args.tokenizer
        inputs = [file.path for file in files]
        output = LanguiniFormat(args.output, vocabulary, args.split, inputs)
    started = time.perf_counter()
    with ProgressLines("encoding") as progress:
        prepared = prepare(
            files,
            output,
            choice,
            key=args.key,
            processes=args.workers or usable_cores(),
            progress=progress.show,
        )
    seconds = time.perf_counter() - started
    if prepared.resumed:
        print(f"continued after {plural(prepared.resumed, 'shard')} of an earlier command")
    print(
        f"{plural(prepared.files, 'file')}, {prepared.bytes:,} bytes of text: "
        f"{prepared.tokens:,} tokens in {plural(prepared.shards, 'shard')}, "
        f"{format_duration(seconds)}"
    )
    print(
        f"sha256  {prepared.sha256}  of the output of sha256sum for the shards in {output.folder}"
    )
    print(f"shards  {output.manifest}: tokens, bytes and SHA-256 of each")
    stated = {"type": output.data_type, "path": str(output.folder), "tokenizer": args.tokenizer}
    print("data = dict(" + ", ".join(f"{key}={value!r}" for key, value in stated.items()) + ")")
    return 0
