"""Images that `cuboid generate` writes to a PNG file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.errors import UserError
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import plan_of_run
from launch.arguments import file_or_folder, output_file
from launch.number_types import share

if TYPE_CHECKING:
    from engine.data.images.codebook import Codebook
    from engine.generation.text import SamplingOptions
    from models.gpt import GPT

HELD_OUT: Literal[True] = True
"""The value of --complete without a path."""
GIVEN = 0.5


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """The images to generate."""

    number: int
    complete: Path | Literal[True] | None
    """Path of the images to complete; HELD_OUT: images of the split that the run validates on;
    None: generate whole images."""
    given: float | None
    """Share of each image to complete that is given; None: GIVEN."""


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for models that generate images."""
    parser.add_argument(
        "--complete",
        nargs="?",
        const=HELD_OUT,
        type=file_or_folder,
        metavar="PATH",
        help="complete images: of a file or folder, as in data.path; without PATH, of the split "
        "that the run validates on",
    )
    parser.add_argument(
        "--given",
        type=share,
        metavar="SHARE",
        help=f"share of each image that --complete is given, from its top; default: {GIVEN}",
    )
    parser.add_argument(
        "--out",
        type=output_file,
        metavar="FILE",
        help="PNG file for images; default: generated.png or completed.png in the run folder",
    )


def write_images(
    model: GPT,
    codebook: Codebook,
    sampling: SamplingOptions,
    request: ImageRequest,
    path: Path,
    out: Path | None,
    environ: Mapping[str, str],
) -> Path:
    """Generate images and write them to ``out``, by default into the folder of the model at
    ``path``. Return the path of the file.

    Raises UserError if the images to complete cannot be read.
    """
    import numpy as np

    from engine.data.images.grid import write_png
    from engine.generation import images

    folder = folder_of(path)
    if request.complete is None:
        if request.given is not None:
            raise UserError("--given needs --complete")
        starts = images.draw_starts(codebook, request.number, sampling.seed)
        parts = images.complete(model, codebook, starts, sampling)
        pixels = images.draw(codebook, np.concatenate(list(parts)))
        out = out or folder / "generated.png"
    else:
        if request.complete is HELD_OUT:
            plan = plan_of_run(RunFolder(folder), gpus=None)
            true = images.held_out_images(plan, request.number, codebook, environ)
        else:
            files = str(request.complete)
            true = images.images_in_files(files, request.number, codebook)
        given = images.given_part(codebook, true, request.given or GIVEN)
        parts = images.complete(model, codebook, given, sampling)
        completed = np.concatenate(list(parts))
        pixels = images.draw_completions(codebook, given.shape[1], completed, true)
        print("from left to right: given, completed, true", file=sys.stderr, flush=True)
        out = out or folder / "completed.png"
    write_png(out, pixels)
    return out


def folder_of(path: Path) -> Path:
    """Return the folder of a run that has the checkpoint or weights at ``path``."""
    if path.parent.name == "checkpoints":
        return path.parents[1]
    return path if path.is_dir() else path.parent
