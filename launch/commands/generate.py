"""Generate text or images with a trained model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.runs.lookup import run_with_weights
from launch.arguments import add_step, file_or_folder
from launch.generated_images import ImageRequest, add_image_options, write_images
from launch.number_types import positive, share
from launch.standard_streams import reader_left

if TYPE_CHECKING:
    from engine.data.tokenizer import Tokenizer
    from engine.generation.text import SamplingOptions
    from engine.inout.saved_model import SavedModel
    from models.gpt import GPT

EXAMPLES = (
    "cuboid generate --prompt 'Once upon a time' --tokens 100",
    "cuboid generate runs/demo-20260101-120000 --temperature 0.5 --num 3",
    "cuboid generate --complete path/images --num 8 --top-k 100 --out completed.png",
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
    parser.add_argument("--prompt", help="text to continue; default: none")
    parser.add_argument(
        "--tokens", type=positive, help="number of tokens of a text to generate; default: 200"
    )
    add_image_options(parser)
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
        "--num",
        type=positive,
        metavar="N",
        help="number of texts or images; default: 1 text, 16 images",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed; default: 0")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the prompt and its continuation while it is generated, text by text, or write a PNG
    file of images, and return 0.

    Raises:
        UserError: no such model, or it has no tokenizer, or the options are not for its tokens.
    """
    path = args.run or run_with_weights(None).path
    import torch  # only now: a wrong folder is rejected without waiting for this import

    from engine.data.images.codebook import Codebook
    from engine.generation.text import SamplingOptions, load_any_model
    from engine.inout.open_model import open_saved_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sampling = SamplingOptions(
        tokens=args.tokens or 200,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    saved = open_saved_model(path, args.step)
    model, tokenizer = load_any_model(saved, device)
    is_image = isinstance(tokenizer, Codebook)
    reject(args, ("prompt", "tokens") if is_image else ("complete", "given", "out"), is_image)
    if isinstance(tokenizer, Codebook):
        request = ImageRequest(number=args.num or 16, complete=args.complete, given=args.given)
        print_model(saved)
        print(write_images(model, tokenizer, sampling, request, path, args.out, environ))
        return 0
    return print_texts(model, tokenizer, saved, sampling, args)


def reject(args: argparse.Namespace, options: Sequence[str], is_image: bool) -> None:
    """Raise UserError if one of ``options`` is given: they do not suit this kind of model."""
    for option in options:
        if getattr(args, option) is not None:
            kind, other = ("images", "text") if is_image else ("text", "images")
            raise UserError(
                f"--{option} is for models of {other}, and this one is of {kind}; leave it out"
            )


def print_texts(
    model: GPT,
    tokenizer: Tokenizer,
    saved: SavedModel,
    sampling: SamplingOptions,
    args: argparse.Namespace,
) -> int:
    """Print each text, beginning with the prompt, while it is generated."""
    from engine.generation.text import generate_text

    prompt, number_of_texts = args.prompt or "", args.num or 1
    for number in range(number_of_texts):
        pieces = generate_text(model, tokenizer, prompt, sampling, number)
        first = next(pieces, "")  # rejects an unreadable prompt before it is printed
        if number == 0:  # to stderr: stdout is for the text only
            print_model(saved)
        if number_of_texts > 1:
            print(f"--- {number + 1} of {number_of_texts} ---")
        for piece in chain([prompt, first], pieces):
            print(piece, end="", flush=True)
            if reader_left(sys.stdout):  # such as `cuboid generate | head`
                return 0
        print()
    return 0


def print_model(saved: SavedModel) -> None:
    """Print the path and the step of the model to stderr."""
    step = "" if saved.step is None else f", step {saved.step:,}"
    print(f"{saved.path}{step}", file=sys.stderr, flush=True)


def temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return number
