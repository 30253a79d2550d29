"""Continue a prompt with the model that a run trained."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from itertools import chain

from engine.output import reader_left
from engine.runs.resolve import run_with_weights
from launch.arguments import add_step, file_or_folder, positive

EXAMPLES = (
    "cuboid generate --prompt 'Once upon a time' --tokens 100",
    "cuboid generate runs/demo-20260101-120000 --temperature 0.5 --num 3",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """[RUN] and how to draw from it."""
    parser.add_argument(
        "run",
        nargs="?",
        type=file_or_folder,
        help="a run's folder, one of its checkpoints, what cuboid import left, or a Hugging Face "
        "folder; default: the newest run",
    )
    add_step(parser)
    parser.add_argument("--prompt", default="", help="the text to go on from")
    parser.add_argument("--tokens", type=positive, default=200, help="how many; default: 200")
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=0.8,
        help="1: as the model has it, less: nearer to the likeliest, 0: that one; default: 0.8",
    )
    parser.add_argument("--top-k", type=positive, help="draw from this many likeliest only")
    parser.add_argument(
        "--top-p",
        type=share,
        metavar="P",
        help="draw from the fewest likeliest that together have this probability, above 0 up to 1",
    )
    parser.add_argument(
        "--num", type=positive, default=1, metavar="N", help="how many texts; default: 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other texts; default: 0")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the prompt and what follows as it is drawn, of several texts one after another; 0.

    Raises UserError when there is no such model, or its tokens stand for no text.
    """
    path = args.run or run_with_weights(None).path
    import torch  # only now: a wrong folder should not take seconds to refuse

    from engine.generate import Sampling, generate_text, load_model
    from engine.inout.open_model import open_saved_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sampling = Sampling(
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
        first = next(pieces, "")  # refuses a prompt that cannot be read, which is not printed then
        if number == 0:  # stdout is for the text
            step = "" if saved.step is None else f", step {saved.step:,}"
            print(f"{saved.path}{step}", file=sys.stderr, flush=True)
        if args.num > 1:
            print(f"--- {number + 1} of {args.num} ---")
        for piece in chain([args.prompt, first], pieces):
            print(piece, end="", flush=True)
            if reader_left(sys.stdout):  # `cuboid generate | head`: more text is for nobody
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
        raise argparse.ArgumentTypeError(f"{text} is not above 0 up to 1")
    return number
