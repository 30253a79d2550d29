"""Text from a model that was trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.data import tokenizer
from engine.data.tokenizer import Tokenizer
from engine.errors import RunError, UserError
from engine.inout.saved_model import SavedModel
from models.chunks import ModelChunks
from models.gpt import GPT
from models.kv_cache import KVCache
from models.parallel.context import ParallelContext, derive_seed

POSITIONS = "wpe.weight"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How so many ``tokens`` are drawn: with the probabilities that ``probabilities`` gives, from
    ``seed``."""

    tokens: int = 200
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """softmax(logits / temperature), float64 [vocabulary], of which only the ``top_k`` likeliest
    are left, and of those the fewest likeliest that together have ``top_p`` (the nucleus, Holtzman
    et al. 2020). Of equals the lower id is likelier; temperature 0 leaves the likeliest."""
    logits = logits.double()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
    p = ((logits - logits.max()) / sampling.temperature).softmax(0)
    top_k, top_p = sampling.top_k, sampling.top_p
    if top_k is None and top_p is None:
        return p
    # Few have to be sorted, which costs more than all the rest, where k is told.
    least = 0.0 if top_k is None else p.topk(min(top_k, len(p))).values[-1]
    ids = (p >= least).nonzero().squeeze(1)
    kept, order = p[ids].sort(descending=True, stable=True)
    kept, ids = kept[:top_k], ids[order[:top_k]]
    if top_p is not None:
        kept[kept.cumsum(0) - kept >= top_p * kept.sum()] = 0
    return torch.zeros_like(p).scatter_(0, ids, kept / kept.sum())


def load_model(saved: SavedModel, device: torch.device) -> tuple[GPT, Tokenizer]:
    """A model that was trained, whole on one device, and its tokenizer. It has the positions that
    were trained, and no others.

    It computes in the type of its parameters, float32 at least: casting them for every token would
    take longer than that gains.

    Raises:
        UserError: its tokens stand for no text.
        RunError: its tensors are not what was written.
    """
    if saved.tokenizer is None:
        raise UserError(f"{saved.path}: no tokenizer is with it, so its tokens stand for no text")
    model_tokenizer = tokenizer.load(saved.tokenizer)
    if problems := saved.verify(0, 1):
        raise RunError(f"{saved.path}: {'; '.join(problems)}")
    dtype = torch.promote_types(saved.dtype, torch.float32)
    config = replace(saved.config, block_size=saved.length)
    model = GPT(config, ParallelContext.single_device(device, dtype=dtype, compute=dtype)).eval()
    saved.load(ModelChunks([model]), resize=[POSITIONS])
    return model, model_tokenizer


@torch.no_grad()
def generate_ids(
    model: GPT, prompt: list[int], sampling: Sampling, *, vocabulary: int, number: int = 0
) -> Iterator[int]:
    """Ids below ``vocabulary`` that follow ``prompt`` (at least one); another ``number`` of the
    same seed draws others.

    Each depends on all before it that the positions hold. When they are full, the later half of
    what they hold is read again, from position 0, which leaves room for as many more.

    Raises:
        RunError: the model gives no finite logits.
    """
    assert prompt, "nothing to continue"
    positions = model.config.block_size
    ids, device = list(prompt), model.parallel.device
    generator = torch.Generator().manual_seed(derive_seed("sample", sampling.seed, number))
    cache, new = _cache(model, ids, sampling), ids[-positions:]
    for _ in range(sampling.tokens):
        if cache.length + len(new) > positions:
            cache, new = _cache(model, ids, sampling), ids[-max(1, positions // 2) :]
        x = model.embed(torch.tensor([new], device=device), start=cache.length)
        x = model(x, len(new), cache=cache)
        logits = model.logits(x[-1:])[0, :vocabulary].cpu()
        if not logits.isfinite().all():
            raise RunError(
                "the model gives no finite logits: its weights overflow, or are not numbers"
            )
        p = probabilities(logits, sampling)
        new = [int(torch.multinomial(p, 1, generator=generator))]
        ids += new
        yield new[0]


def _cache(model: GPT, ids: list[int], sampling: Sampling) -> KVCache:
    """With room for no more than can come."""
    return KVCache(min(model.config.block_size, len(ids) + sampling.tokens))


def generate_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, sampling: Sampling, number: int = 0
) -> Iterator[str]:
    """Text that follows ``prompt``, up to an end of text, in pieces of whole characters; an empty
    prompt starts a document.

    Raises:
        UserError: the prompt has characters that the tokenizer does not know.
    """
    start = tokenizer.end_of_text if tokenizer.end_of_text is not None else 0
    ids = [int(n) for n in tokenizer.encode(prompt)] or [start]
    new: list[int] = []
    for token in generate_ids(model, ids, sampling, vocabulary=tokenizer.size, number=number):
        if token == tokenizer.end_of_text:
            break
        new.append(token)
        text = tokenizer.decode(new)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # in the middle of a character
            yield text
            new = []
    if new:
        yield tokenizer.decode(new)
