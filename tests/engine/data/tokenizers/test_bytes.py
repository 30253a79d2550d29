"""The byte tokenizer: ids are the bytes of UTF-8."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data import source
from engine.data.tokenizer import dump, load
from engine.data.tokenizers.bytes import Bytes
from engine.errors import UserError
from tests.engine.data.support import Ask, ids_of


@given(st.text())
def test_ids_are_the_bytes_of_the_text(text: str) -> None:
    try:
        expected = list(text.encode())
    except UnicodeEncodeError:
        with pytest.raises(UserError, match="half of a surrogate pair"):
            Bytes().encode(text)
        return
    ids = Bytes().encode(text)
    assert ids.tolist() == expected
    assert Bytes().decode(ids) == text
    assert Bytes().byte_counts()[ids].sum() == len(expected)


def test_end_of_text_is_no_byte_and_no_text_encodes_to_it() -> None:
    tokenizer = Bytes()
    assert (tokenizer.size, tokenizer.end_of_text, tokenizer.byte_counts()[256]) == (257, 256, 0)
    shown = tokenizer.decode([97, 256, 0xE6, 0x9D, 0xB1, 0xE6, 257, -1])
    assert shown == "a<|endoftext|>東\ufffd\ufffd\ufffd"
    assert 256 not in tokenizer.encode(shown)
    assert load(dump(tokenizer)).state() == {}
    assert tokenizer.joined(Bytes())[1].tolist() == list(range(257))


def test_documents_are_separated_by_the_id_256(ask: Ask, tmp_path: Path) -> None:
    for name, text in (("a", "One é. " * 20), ("b", "Two. " * 20)):
        (tmp_path / name).write_text(text)
    corpus = source.open_corpus(
        "text", ask((str(tmp_path / "a"), str(tmp_path / "b")), tokenizer="bytes")
    )
    expected = [*("One é. " * 20).encode(), 256, *("Two. " * 20).encode()]
    assert np.array_equal(ids_of(corpus), expected)
