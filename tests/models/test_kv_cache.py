"""Logits of a text read in pieces through a KV cache, against those of the whole text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.gpt import GPT
from models.kv_cache import KVCache
from tests.support.small_gpt import SIZES, small_gpt


def read(model: GPT, ids: Tensor, cache: KVCache | None = None) -> Tensor:
    """Return logits [B, S, vocabulary] of ids [B, S] that follow the cached tokens."""
    x = model.embed(ids, start=cache.length if cache else 0)
    x = model(x, ids.shape[1], cache=cache)
    return model.logits(x).view(*ids.shape, -1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("first", [1, 2, 7, 15, 16])
@torch.no_grad()
def test_cached_logits_equal_uncached_logits(first: int, batch: int) -> None:
    """Texts of a batch do not mix, and each token gets its position, up to block_size."""
    model, length = small_gpt(), SIZES.block_size
    ids = torch.randint(29, (batch, length), generator=torch.Generator().manual_seed(3))
    wanted, cache = read(model, ids), KVCache(length)
    found = [read(model, ids[:, :first], cache)]
    for place in range(first, length):
        assert cache.length == place
        found.append(read(model, ids[:, place : place + 1], cache))
    torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_cache_rejects_several_tokens_after_prefill_and_more_than_its_length() -> None:
    model, cache = small_gpt(), KVCache(9)
    read(model, torch.zeros(1, 5, dtype=torch.long), cache)
    with pytest.raises(AssertionError, match="mask"):
        read(model, torch.zeros(1, 2, dtype=torch.long), cache)
    cache = KVCache(6)
    with pytest.raises(AssertionError):
        read(model, torch.zeros(1, 7, dtype=torch.long), cache)
