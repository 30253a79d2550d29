"""The SentencePiece tokenizer, compared with the library on models as Languini and others train
them."""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.data import source
from engine.data.tokenize import encode_stream
from engine.data.tokenizer import dump, load
from engine.data.tokenizers.sentencepiece import SentencePiece
from engine.errors import UserError
from tests.engine.data.support import Ask, ids_of, text_of, tokenizer_of
from tests.support.sentencepiece_models import ENGLISH, LANGUINI, trained_model

SentencePieceProcessor = pytest.importorskip("sentencepiece").SentencePieceProcessor
SEPARATOR = 2
SAMPLES = [*ENGLISH[:3], "", " ", "  two  \t\r\n", "naïve 東京 🙂 \u2581 \x00", "<0x41><pad><unk>"]


@cache
def languini() -> tuple[SentencePiece, Any]:
    """Return our tokenizer and the library's, of one model."""
    content = trained_model(**LANGUINI)
    return SentencePiece(content), SentencePieceProcessor(model_proto=content)


@cache
def standard() -> tuple[SentencePiece, Any]:
    content = trained_model()
    return SentencePiece(content), SentencePieceProcessor(model_proto=content)


@pytest.mark.parametrize("models", [languini, standard])
def test_ids_and_text_equal_those_of_the_library(models: Any) -> None:
    ours, theirs = models()
    for text in SAMPLES:
        ids = ours.encode(text).tolist()
        assert ids == theirs.encode(text)
        # The library drops the space that it has added before the text
        assert ours.decode(ids).removeprefix(" " * (models is standard)) == theirs.decode(ids)
    assert ours.size == theirs.vocab_size()


def test_symbols_have_the_ids_of_the_model() -> None:
    ours, _ = languini()
    assert (ours.end_of_text, ours.decode([SEPARATOR]), ours.decode([0, 0])) == (2, "<D>", "")
    assert standard()[0].end_of_text == standard()[1].eos_id() == 2
    assert ours.decode([3 + ord("a"), ours.size, -1]) == "a\ufffd\ufffd"


def test_a_separator_in_the_text_is_text() -> None:
    ours, theirs = languini()
    assert SEPARATOR in theirs.encode("a <D> b")  # the fault that this test is about
    ids = ours.encode("a <D> b<D>").tolist()
    assert SEPARATOR not in ids
    assert ours.decode(ids) == "a <D> b<D>"
    assert ours.encode("</s>").tolist() == theirs.encode("</s>")  # no symbol of this model
    assert 2 not in standard()[0].encode("a </s> b").tolist()


@example(["The cat <", "D", "> sat  ", "  on\n", "", "東", "京🙂"])
@given(st.lists(st.text("Thecat <D>\n\u2581東é12", max_size=12)))
@settings(max_examples=60, deadline=None)
def test_a_stream_in_pieces_has_the_ids_of_the_whole_text(pieces: list[str]) -> None:
    ours, _ = languini()
    streamed = [int(i) for ids in encode_stream(iter(pieces), ours) for i in ids]
    assert streamed == ours.encode("".join(pieces)).tolist()


def test_long_text_has_boundaries_only_if_the_model_is_literal() -> None:
    text = ENGLISH[0]
    assert 0 < len(text) - languini()[0].boundary(text) < 12
    assert standard()[0].boundary(text) == 0  # it adds a space before every text


def test_byte_counts_add_up_to_the_bytes_of_the_text() -> None:
    ours, _ = languini()
    counts = ours.byte_counts()
    for text in SAMPLES:
        if "\u2581" not in text:  # SentencePiece's own space, which is decoded to one
            assert counts[ours.encode(text)].sum() == len(text.encode())
    assert counts[SEPARATOR] == counts[0] == 0


def test_state_is_the_model_file_and_loads_again() -> None:
    ours, _ = languini()
    saved = json.loads(json.dumps(dump(ours)))
    again = load(saved)
    assert saved["type"] == "sentencepiece"
    assert [again.encode(text).tolist() for text in SAMPLES] == [
        ours.encode(text).tolist() for text in SAMPLES
    ]
    same, table = ours.joined(again)  # type: ignore[arg-type]
    assert (same, table.tolist()) == (ours, list(range(ours.size)))
    with pytest.raises(UserError, match="is another SentencePiece model"):
        ours.joined(standard()[0])
    with pytest.raises(UserError, match="the saved SentencePiece model is not a SentencePiece"):
        load({"type": "sentencepiece", "model": "AAAA"})


def test_text_source_uses_the_tokenizer_file_of_the_setting(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat <D> sat. " * 30)
    (tmp_path / "b.txt").write_text("The dog. " * 30)
    model = tmp_path / "my.model"
    model.write_bytes(trained_model(**LANGUINI))
    paths = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    request = ask(paths, tokenizer="sentencepiece", tokenizer_path=str(model))
    corpus = source.open_corpus("text", request)
    assert text_of(corpus) == "The cat <D> sat. " * 30 + "<D>" + "The dog. " * 30
    assert np.count_nonzero(ids_of(corpus) == SEPARATOR) == 1
    other = trained_model(**LANGUINI | {"vocab_size": 300})
    model.write_bytes(other)  # another model under the name: the tokens are made again
    changed = source.open_corpus("text", request)
    assert changed.fingerprint != corpus.fingerprint
    assert (text_of(changed), tokenizer_of(changed).size) == (
        text_of(corpus),
        SentencePiece(other).size,
    )


def test_invalid_model_files_and_text_are_rejected(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(**changes: Any) -> str:
        with pytest.raises(UserError) as error:
            source.open_corpus("text", ask(tokenizer="sentencepiece", **changes))
        return str(error.value)

    (tmp_path / "no.model").write_text("no model")
    assert message() == (
        "data.tokenizer='sentencepiece' needs a model file; set data.tokenizer_path"
    )
    assert "data.tokenizer_path does not exist" in message(tokenizer_path="/nowhere/x.model")
    wrong = message(tokenizer_path=str(tmp_path / "no.model"))
    assert wrong == f"data.tokenizer_path={str(tmp_path / 'no.model')!r} is not a " + (
        "SentencePiece model"
    )
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    missing = message(tokenizer_path=str(tmp_path / "no.model"))
    assert missing.endswith("needs SentencePiece; pip install sentencepiece")
    with pytest.raises(UserError, match=r"U\+DC80 is half of a surrogate pair"):
        languini()[0].encode("\udc80")
