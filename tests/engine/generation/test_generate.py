"""Generation: sampling, the KV cache, and text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.data.tokenizers.char import Char
from engine.data.tokenizers.gpt2 import GPT2
from engine.errors import RunError, UserError
from engine.generation.text import SamplingOptions, generate_ids, generate_text, probabilities
from models.chunks import ModelChunks
from models.gpt import GPT
from models.hf_state_dict import to_hf
from models.parallel.context import derive_seed
from tests.support.small_gpt import SIZES, small_gpt

GREEDY = SamplingOptions(tokens=40, temperature=0)
PROMPT = [3, 1, 4, 1, 5]


def ids_of(model: GPT, prompt: list[int], sampling: SamplingOptions, number: int = 0) -> list[int]:
    vocabulary = model.config.vocab_size
    return list(generate_ids(model, prompt, sampling, vocabulary=vocabulary, number=number))


@torch.no_grad()
def ids_without_cache(
    model: GPT, prompt: list[int], sampling: SamplingOptions, number: int = 0
) -> list[int]:
    """Generate ids without a cache: encode the whole context for every id. When it has no position
    left, drop the first half."""
    generator = torch.Generator().manual_seed(derive_seed("sample", sampling.seed, number))
    ids, start = list(prompt), max(0, len(prompt) - SIZES.block_size)
    for _ in range(sampling.tokens):
        if len(ids) - start > SIZES.block_size:
            start = len(ids) - SIZES.block_size // 2
        context = torch.tensor([ids[start:]])
        logits = model.logits(model(model.embed(context), context.shape[1])[-1:])[0]
        ids.append(int(torch.multinomial(probabilities(logits, sampling), 1, generator=generator)))
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [1, 5, 15, 16, 17, 50])
@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingOptions(tokens=40, seed=4)], ids=["greedy", "drawn"]
)
def test_cache_does_not_change_the_ids(length: int, sampling: SamplingOptions) -> None:
    """This includes ids after the last position and prompts longer than the positions."""
    model = small_gpt()
    prompt = [(7 * n) % 29 for n in range(length)]
    found = ids_of(model, prompt, sampling)
    assert found == ids_without_cache(model, prompt, sampling)
    assert len(set(found)) > 3


def test_greedy_ids_equal_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = replace(SIZES, head_dim=5)
    model = small_gpt(sizes)
    config = transformers.GPT2Config(
        n_layer=3,
        n_head=4,
        n_embd=20,
        n_inner=28,
        vocab_size=29,
        n_positions=16,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    state = to_hf(((n, p.detach()) for n, p in ModelChunks([model]).named_parameters()), sizes)
    left = theirs.load_state_dict(dict(state), strict=False)
    assert (left.missing_keys, left.unexpected_keys) == (["lm_head.weight"], [])  # it is tied
    prompt, tokens = torch.tensor([PROMPT]), 16 - len(PROMPT)
    expected = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
    )[0, len(PROMPT) :]
    assert ids_of(model, PROMPT, replace(GREEDY, tokens=tokens)) == expected.tolist()


def test_nan_weights_fail_in_one_line() -> None:
    model = small_gpt()
    with torch.no_grad():
        model.get_parameter("h.1.mlp.c_fc.weight")[0, 0] = torch.nan
    with pytest.raises(RunError, match="logits are not finite"):
        ids_of(model, PROMPT, GREEDY)


def test_every_seed_and_number_gives_other_ids() -> None:
    model, sampling = small_gpt(), SamplingOptions(tokens=20, temperature=2.0)
    texts = [tuple(ids_of(model, PROMPT, sampling, number)) for number in range(4)]
    assert len(set(texts)) == 4
    assert [tuple(ids_of(model, PROMPT, sampling, number)) for number in range(4)] == texts
    other = tuple(ids_of(model, PROMPT, replace(sampling, seed=1)))
    assert other not in texts
    assert {*ids_of(model, PROMPT, replace(GREEDY, seed=1))} == {*ids_of(model, PROMPT, GREEDY)}


def test_ids_outside_the_tokenizer_are_never_sampled() -> None:
    hot = SamplingOptions(tokens=300, temperature=1e6)
    found = set(generate_ids(small_gpt(), PROMPT, hot, vocabulary=7))
    assert found == set(range(7))


LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()  # of these probabilities


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 1e-300}, [0, 1, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 3}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_k": 99}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.39}, [0, 1, 0, 0]),
        ({"top_p": 0.41}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        # of those three, 4/9 and 3/9 are the fewest that have 0.7, and of all four they are not
        ({"top_k": 3, "top_p": 0.75}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 0.5, "top_p": 0.8}, [0, 16 / 25, 0, 9 / 25]),
    ],
)
def test_probabilities_follow_temperature_top_k_and_top_p(
    more: dict[str, Any], expected: list[float]
) -> None:
    found = probabilities(LOGITS, SamplingOptions(**more))
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_ties_prefer_the_lower_id() -> None:
    for more in ({"top_k": 2}, {"top_p": 0.5}):
        assert probabilities(torch.zeros(4), SamplingOptions(**more)).tolist() == [0.5, 0.5, 0, 0]
    assert probabilities(torch.zeros(4), GREEDY).tolist() == [1, 0, 0, 0]


def test_sampled_frequencies_match_the_probabilities() -> None:
    """The comparison is a chi-squared test with fixed seeds."""
    model, count = small_gpt(), 1000
    with torch.no_grad():
        model.wte.weight.mul_(0.2)
    sampling = SamplingOptions(tokens=1, top_k=8, temperature=0.9)
    x = model(model.embed(torch.tensor([PROMPT])), len(PROMPT))
    p = probabilities(model.logits(x[-1:])[0].detach(), sampling)
    draws = Counter(
        token for number in range(count) for token in ids_of(model, PROMPT, sampling, number)
    )
    assert draws.keys() <= {int(n) for n in p.nonzero()}
    expected = {n: float(p[n]) * count for n in map(int, p.nonzero())}
    square = sum((draws[n] - expected) ** 2 / expected for n, expected in expected.items())
    assert square < 29.9  # the 99.99th percentile of chi-squared with 7 degrees of freedom


def fake_ids(monkeypatch: pytest.MonkeyPatch, ids: Sequence[int]) -> dict[str, Any]:
    """Make the model generate ``ids``. Return the arguments that it is called with."""
    asked: dict[str, Any] = {}

    def say(
        model: object, prompt: list[int], sampling: object, *, vocabulary: int, number: int
    ) -> Iterator[int]:
        asked.update(prompt=prompt, vocabulary=vocabulary, number=number)
        yield from ids

    monkeypatch.setattr("engine.generation.text.generate_ids", say)
    return asked


def test_text_is_yielded_in_complete_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    words, model = GPT2(), small_gpt()
    text = "naïve 🙂 日本"
    ids = [int(n) for n in words.encode(text)]
    asked = fake_ids(monkeypatch, ids)
    pieces = list(generate_text(model, words, "Hi", SamplingOptions(), 2))
    assert "".join(pieces) == text
    assert len(ids) > len(pieces) > 4
    assert not any("\ufffd" in piece for piece in pieces)
    assert asked == {"prompt": [17250], "vocabulary": 50257, "number": 2}
    fake_ids(monkeypatch, ids[:-1])
    assert "".join(generate_text(model, words, "Hi", SamplingOptions())).endswith("\ufffd")


def test_text_stops_at_end_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    words, model = GPT2(), small_gpt()
    asked = fake_ids(monkeypatch, [17250, 50256, 17250])
    assert "".join(generate_text(model, words, "", SamplingOptions())) == "Hi"
    assert asked["prompt"] == [50256], "an empty prompt starts a document"
    asked = fake_ids(monkeypatch, [1, 0])
    assert "".join(generate_text(model, Char("abc"), "", SamplingOptions())) == "ba"
    assert asked["prompt"] == [0]


@pytest.mark.parametrize(
    ("words", "prompt", "message"),
    [
        (Char("abc"), "cabé", "the character 'é'"),
        (GPT2(), "cab\udce9", r"U\+DCE9 is half of a surrogate pair, or a byte"),
    ],
)
def test_prompt_with_unknown_characters_is_rejected(words, prompt, message):
    with pytest.raises(UserError, match=message):
        next(generate_text(small_gpt(), words, prompt, SamplingOptions()))
