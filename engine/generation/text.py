"""Generates text with a saved model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.data.images.codebook import Codebook
from engine.data.images.load_codebook import load_any
from engine.data.tokenizer import Tokenizer
from engine.errors import RunError, UserError
from engine.inout.saved_model import SavedModel
from models.chunks import ModelChunks
from models.gpt import GPT
from models.kv_cache import KVCache
from models.parallel.context import ParallelContext, derive_seed

POSITIONS = "wpe.weight"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of sampling; ``probabilities`` has the formulas."""

    tokens: int = 200
    """Maximum number of tokens."""
    temperature: float = 1.0
    """0: greedy."""
    top_k: int | None = None
    """Sample from the k most likely tokens only; None: from all."""
    top_p: float | None = None
    """Sample from the nucleus of this probability only; None: from all."""
    seed: int = 0


def probabilities(logits: Tensor, sampling: SamplingOptions) -> Tensor:
    """Return the probability of each token to be sampled, float64 [vocabulary]: softmax(logits /
    temperature), restricted to the ``top_k`` most likely tokens, then to the nucleus (Holtzman et
    al. 2020): the fewest most likely tokens whose probabilities add up to ``top_p``.

    Of equally likely tokens, the lower id counts as more likely. Temperature 0 gives the most
    likely token probability 1.

    Raises:
        RunError: the logits are not finite.
    """
    if not logits.isfinite().all():
        raise RunError(
            "the model's logits are not finite: its weights are NaN, infinite or too large; "
            "use another checkpoint"
        )
    logits = logits.double()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
    p = ((logits - logits.max()) / sampling.temperature).softmax(0)
    top_k, top_p = sampling.top_k, sampling.top_p
    if top_k is None and top_p is None:
        return p
    # With top_k only the top_k tokens are sorted: sorting all costs more than the rest together
    minimum = 0.0 if top_k is None else p.topk(min(top_k, len(p))).values[-1]
    ids = (p >= minimum).nonzero().squeeze(1)
    most_likely, order = p[ids].sort(descending=True, stable=True)
    most_likely, ids = most_likely[:top_k], ids[order[:top_k]]
    if top_p is not None:
        # A token stays if the more likely ones add up to less than top_p. Example: top_p = 0.8,
        # most_likely [0.5, 0.25, 0.15, 0.1]: the sums before them are [0, 0.5, 0.75, 0.9], so the
        # first three stay.
        most_likely[most_likely.cumsum(0) - most_likely >= top_p * most_likely.sum()] = 0
    return torch.zeros_like(p).scatter_(0, ids, most_likely / most_likely.sum())


def load_model(saved: SavedModel, device: torch.device) -> tuple[GPT, Tokenizer]:
    """Load a model of text as ``load_any_model`` does. Raises UserError for a model of images."""
    model, model_tokenizer = load_any_model(saved, device)
    if isinstance(model_tokenizer, Codebook):
        raise UserError(f"{saved.path} is a model of images, not of text")
    return model, model_tokenizer


def load_any_model(saved: SavedModel, device: torch.device) -> tuple[GPT, Tokenizer | Codebook]:
    """Verify a saved model and load it, unsharded, on ``device``. Return the model, and its
    tokenizer or its codebook of images. The model has only the positions that were trained.

    The model computes in the dtype of its parameters, at least float32: casting the parameters for
    every token costs more time than a smaller dtype gains.

    Raises:
        UserError: the model has no tokenizer, or is corrupt.
    """
    if saved.tokenizer is None:
        raise UserError(
            f"{saved.path} has no tokenizer, so its tokens cannot be decoded to text; use a run or "
            "an export that has one"
        )
    model_tokenizer = load_any(saved.tokenizer)
    saved.require_intact()
    dtype = torch.promote_types(saved.dtype, torch.float32)
    config = replace(saved.config, block_size=saved.length)
    model = GPT(config, ParallelContext.single_device(device, dtype=dtype, compute=dtype)).eval()
    saved.load(ModelChunks([model]), resize=[POSITIONS])
    return model, model_tokenizer


@torch.no_grad()
def generate_ids(
    model: GPT, prompt: list[int], sampling: SamplingOptions, *, vocabulary: int, number: int = 0
) -> Iterator[int]:
    """Yield sampled ids below ``vocabulary`` that continue ``prompt``, which is not empty. Each
    ``number`` gives another sample for the same seed.

    The context of an id is all ids in the KV cache. When the cache has no position left, it is
    cleared and the last half of the context is encoded again from position 0.

    Raises:
        RunError: the logits are not finite.
    """
    assert prompt, "the prompt is empty"
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
        p = probabilities(logits, sampling)
        new = [int(torch.multinomial(p, 1, generator=generator))]
        ids += new
        yield new[0]


def _cache(model: GPT, ids: list[int], sampling: SamplingOptions) -> KVCache:
    """Return an empty cache, as large as ``ids`` and the sampled tokens need."""
    return KVCache(min(model.config.block_size, len(ids) + sampling.tokens))


def generate_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, sampling: SamplingOptions, number: int = 0
) -> Iterator[str]:
    """Yield sampled text that continues ``prompt``, up to end-of-text, in pieces of complete
    characters. An empty prompt starts a document.

    Raises:
        UserError: the tokenizer has no ids for characters of the prompt.
    """
    start = tokenizer.end_of_text if tokenizer.end_of_text is not None else 0
    ids = [int(n) for n in tokenizer.encode(prompt)] or [start]
    new: list[int] = []
    for token in generate_ids(model, ids, sampling, vocabulary=tokenizer.size, number=number):
        if token == tokenizer.end_of_text:
            break
        new.append(token)
        text = tokenizer.decode(new)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # the last character is complete
            yield text
            new = []
    if new:
        yield tokenizer.decode(new)
