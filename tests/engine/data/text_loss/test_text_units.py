"""Bytes and characters of targets, counted as documented."""

import torch

from engine.data.text_loss.text_units import TextUnits
from engine.data.tokenizers.gpt2 import GPT2
from models.parallel.targets import IGNORED


def test_text_is_counted_in_bytes_and_in_characters_of_the_decoded_samples() -> None:
    words, text = GPT2(), "naïve café 👧"  # the emoji has 4 bytes, in several tokens
    ids = words.encode(text).astype("int64").tolist()
    assert len(ids) > 4
    whole = torch.tensor([[*ids, IGNORED]])
    assert TextUnits(words).count(whole).tolist() == [len(ids), len(text.encode()), len(text)]
    cut = torch.tensor([ids[:-1], [ids[-1]] + [IGNORED] * (len(ids) - 2)])
    parts = [words.decode(ids[:-1]), words.decode(ids[-1:])]
    assert "\ufffd" in parts[0]
    assert "\ufffd" in parts[1]
    assert TextUnits(words).count(cut).tolist() == [
        len(ids),
        len(text.encode()),
        sum(map(len, parts)),
    ]
    separator = torch.tensor([[words.end_of_text]])
    assert TextUnits(words).count(separator).tolist() == [1, 0, len("<|endoftext|>")]
    assert TextUnits(None).count(whole).tolist() == [len(ids), 0, 0]
