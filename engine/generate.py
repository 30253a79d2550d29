"""Text from the weights that a run left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.build import DTYPES
from engine.data import tokenizer
from engine.data.tokenizer import Tokenizer
from engine.errors import Refused
from engine.recorded import recorded_settings
from engine.run_folder import RunFolder
from engine.weights import load
from models.chunks import Chunks
from models.gpt import GPT
from models.parallel.partition import Partition
from models.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn: logits / ``temperature`` (0: the likeliest token), the ``top_k``
    likeliest only, from a generator seeded with ``seed``."""

    tokens: int = 200
    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 0


def open_run(folder: RunFolder, weights: Path, device: torch.device) -> tuple[GPT, Tokenizer]:
    """A run's model, whole on one device, with ``weights`` of a checkpoint or a file, and its
    tokenizer.

    Raises:
        Refused: the run's tokens stand for no text.
        Failed: the weights are not what was written.
    """
    if not folder.tokenizer.is_file():
        raise Refused(f"{folder.path}: its data has no tokenizer, so its tokens stand for no text")
    settings = recorded_settings(folder)
    dtype, compute = DTYPES[settings.precision]
    part = Partition.alone(device, dtype=dtype, compute=compute)
    model = GPT(Sizes.of(settings.model), part).eval()
    load(Chunks([model]), weights)
    saved = json.loads(folder.tokenizer.read_text(encoding="utf-8"))
    return model, tokenizer.load(saved)


@torch.no_grad()
def continue_ids(model: GPT, ids: list[int], sampling: Sampling) -> Iterator[int]:
    """Ids that follow ``ids`` (at least one), each conditioned on the last block_size before it."""
    assert ids, "nothing to continue"
    device = model.part.device
    draw = torch.Generator().manual_seed(sampling.seed)
    for _ in range(sampling.tokens):
        context = torch.tensor([ids[-model.sizes.block_size :]], device=device)
        x = model(model.embed(context), context.shape[1])
        logits = model.logits(x[-1:])[0].float().cpu()
        if sampling.temperature == 0:
            token = int(logits.argmax())
        else:
            logits /= sampling.temperature
            if sampling.top_k is not None and sampling.top_k < len(logits):
                logits[logits < logits.topk(sampling.top_k).values[-1]] = -torch.inf
            token = int(torch.multinomial(logits.softmax(0), 1, generator=draw))
        ids = [*ids, token]
        yield token


def continue_text(model: GPT, words: Tokenizer, prompt: str, sampling: Sampling) -> Iterator[str]:
    """Text that follows ``prompt``, in pieces of whole characters; an empty prompt starts a
    document.

    Raises:
        Refused: the prompt has characters that the tokenizer does not know.
    """
    start = words.end_of_text if words.end_of_text is not None else 0
    ids = [int(n) for n in words.encode(prompt)] or [start]
    told = 0
    new: list[int] = []
    for token in continue_ids(model, ids, sampling):
        if token >= words.size:  # a row of the table that stands for no text
            continue
        new.append(token)
        text = words.decode(new)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # in the middle of a character
            yield text[told:]
            told = len(text)
