"""Generate text with a trained model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from itertools import chain

from engine.runs.lookup import run_with_weights
from launch.arguments import add_step, file_or_folder
from launch.number_types import positive
from launch.standard_streams import reader_left

EXAMPLES = (
    "cuboid generate --prompt 'Once upon a time' --tokens 100",
    "cuboid generate runs/demo-20260101-120000 --temperature 0.5 --num 3",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add [RUN] and the sampling options."""
    parser.add_argument(
        "run",
        nargs="?",
        type=file_or_folder,
        help="run folder, checkpoint folder, a folder that cuboid import wrote, or a Hugging Face "
        "folder; default: the newest run",
    )
    add_step(parser)
    parser.add_argument("--prompt", default="", help="text to continue; default: none")
    parser.add_argument(
        "--tokens", type=positive, default=200, help="number of tokens to generate; default: 200"
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=0.8,
        help="sampling temperature: 1 = the model's distribution, 0 = greedy; default: 0.8",
    )
    parser.add_argument(
        "--top-k", type=positive, help="sample from this number of most likely tokens"
    )
    parser.add_argument(
        "--top-p",
        type=share,
        metavar="P",
        help="sample from the smallest set of most likely tokens whose probabilities sum to P or "
        "more, 0 < P <= 1",
    )
    parser.add_argument(
        "--num", type=positive, default=1, metavar="N", help="number of texts; default: 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed; default: 0")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the prompt and its continuation while it is generated, text by text, and return 0.

    Raises:
        UserError: no such model, or it has no tokenizer.
    """
    path = args.run or run_with_weights(None).path
    import torch  # only now: a wrong folder is rejected without waiting for this import

    from engine.generate import SamplingOptions, generate_text, load_model
    from engine.inout.open_model import open_saved_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sampling = SamplingOptions(
        tokens=args.tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    saved = open_saved_model(path, args.step)
    model, tokenizer = load_model(saved, device)
    for number in range(args.num):
        pieces = generate_text(model, tokenizer, args.prompt, sampling, number)
        first = next(pieces, "")  # rejects an unreadable prompt before it is printed
        if number == 0:  # to stderr: stdout is for the text only
            step = "" if saved.step is None else f", step {saved.step:,}"
            print(f"{saved.path}{step}", file=sys.stderr, flush=True)
        if args.num > 1:
            print(f"--- {number + 1} of {args.num} ---")
        for piece in chain([args.prompt, first], pieces):
            print(piece, end="", flush=True)
            if reader_left(sys.stdout):  # such as `cuboid generate | head`
                return 0
        print()
    return 0


def temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return number


def share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return number
