"""The character tokenizer, compared with Python's strings."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.tokenizer import dump, load
from engine.data.tokenizers.char import Char
from engine.errors import UserError


@given(st.lists(st.text(), min_size=1))
def test_ids_are_positions_in_the_sorted_characters(pieces: list[str]) -> None:
    text = "".join(pieces)
    tokenizer = Char.fit(pieces)
    vocabulary = sorted(set(text))
    assert tokenizer.size == len(vocabulary)
    assert tokenizer.encode(text).tolist() == [vocabulary.index(c) for c in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text())
def test_saved_tokenizer_is_loaded_unchanged(text: str) -> None:
    tokenizer = Char.fit([text])
    again = load(json.loads(json.dumps(dump(tokenizer))))
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert again.decode(range(again.size)) == tokenizer.decode(range(tokenizer.size))


def test_end_of_text_is_a_token_if_there_are_several_documents() -> None:
    assert Char.fit(["ab", "c"]).end_of_text is None
    tokenizer = Char.fit(["ab", None, "c"])
    assert tokenizer.end_of_text == 0
    assert tokenizer.decode([1, 0, 3]) == "a\x03c"


@pytest.mark.parametrize("stranger", ["b", "\ue000", "\U0001f600", "\x00"])
def test_unknown_character_is_rejected_by_name(stranger: str) -> None:
    with pytest.raises(
        UserError, match=f"U\\+{ord(stranger):04X}.* in the vocabulary of 2 characters: 'ac'"
    ):
        Char.fit(["ca"]).encode("a" + stranger)


def test_long_vocabulary_is_abbreviated_in_messages() -> None:
    with pytest.raises(UserError) as refusal:
        Char.fit(map(chr, range(0x4E00, 0x6000))).encode("a")
    assert "not in the vocabulary of 4,608 characters: '一丁" in str(refusal.value)
    assert len(str(refusal.value)) < 250


@given(st.text(), st.text())
def test_extended_vocabulary_keeps_its_ids(first: str, second: str) -> None:
    before, other = Char.fit([first]), Char.fit([second])
    joined, table = before.joined(other)
    assert joined.characters[: before.size] == before.characters
    assert sorted(joined.characters) == sorted(set(first + second))
    assert table[other.encode(second)].tolist() == joined.encode(second).tolist()
    again = load(json.loads(json.dumps(dump(joined))))
    assert again.encode(first).tolist() == before.encode(first).tolist()
    assert again.decode(again.encode(second)) == second


def test_empty_text_has_no_tokens() -> None:
    tokenizer = Char.fit([])
    assert tokenizer.size == 0
    assert len(tokenizer.encode("")) == 0
    with pytest.raises(UserError, match="'a'"):
        tokenizer.encode("a")


def test_ids_outside_the_vocabulary_decode_to_a_replacement_character() -> None:
    assert Char.fit(["ab"]).decode(np.array([0, 2, -1, 1])) == "a\ufffd\ufffdb"


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"type": "char"},
        {"type": "char", "characters": "aba"},
        {"type": "char", "characters": ["a"]},
        {"type": "../char", "characters": "ab"},
    ],
)
def test_corrupt_vocabulary_is_rejected(saved: dict[str, object]) -> None:
    with pytest.raises(UserError):
        load(saved)
