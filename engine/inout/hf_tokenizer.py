"""Translates tokenizers to the files of transformers and back, without importing transformers."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.data import tokenizer
from engine.data.images.load_codebook import HF_FILE_NAME
from engine.data.tokenizers import gpt2
from engine.data.tokenizers.bytes import BYTES, Bytes
from engine.data.tokenizers.char import END_OF_TEXT, Char

VOCABULARY, MERGES, FAST = "vocab.json", "merges.txt", "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
BY_CHARACTER: Mapping[str, Any] = {
    "type": "Split",
    "pattern": {"Regex": r"[\s\S]"},
    "behavior": "Isolated",
    "invert": False,
}
"""Pre-tokenizer of the tokenizers library that splits text into characters."""


def read(folder: Path) -> dict[str, Any] | None:
    """Read the tokenizer of a folder and return it as ``engine.data.tokenizer.dump`` does; None if
    it is neither GPT-2's, nor a byte or character tokenizer as ``files`` writes them, nor a
    codebook of images."""
    if (codebook := tokenizer.read_saved(folder / HF_FILE_NAME)) is not None:
        return codebook
    ids = _load(folder / VOCABULARY)
    if ids is not None:
        known = ids == json.loads(gpt2.vocabulary())
        return {"type": "gpt2", **gpt2.GPT2().state()} if known else None
    try:
        content = _load(folder / FAST) or {}
        if content["model"].get("vocab") == _by_byte()["model"]["vocab"]:
            return tokenizer.dump(Bytes())
        if content["pre_tokenizer"] != BY_CHARACTER or content["model"]["type"] != "WordLevel":
            return None
        vocabulary = content["model"]["vocab"]
        characters = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[c] for c in characters] != list(range(len(characters))):
            return None
    except (KeyError, TypeError):
        return None
    if any(len(c) != 1 for c in characters):
        return None
    return tokenizer.dump(Char("".join(characters)))


def files(saved: dict[str, Any] | None, length: int) -> dict[str, bytes]:
    """Return the files of a saved tokenizer: file name -> content. ``length``: number of positions
    of the model."""
    if saved is None:
        return {}
    if saved["type"] == tokenizer.IMAGES:
        return {HF_FILE_NAME: as_json(saved)}
    config: dict[str, Any] = {"model_max_length": length}
    fast = {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    match saved["type"]:
        case "sentencepiece":  # transformers has no tokenizer that reads any such model
            return {SENTENCEPIECE: base64.b64decode(saved["model"])}
        case "gpt2":
            special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), gpt2.END_OF_TEXT)
            config |= {"add_prefix_space": False, "tokenizer_class": "GPT2Tokenizer"}
            contents = {VOCABULARY: gpt2.vocabulary(), MERGES: gpt2.merges()}
        case "bytes":
            special = dict.fromkeys(("bos_token", "eos_token"), gpt2.END_OF_TEXT)
            config |= fast
            contents = {FAST: as_json(_by_byte())}
        case _:
            characters = saved["characters"]
            ends = ("bos_token", "eos_token") if END_OF_TEXT in characters else ()
            special = dict.fromkeys(ends, END_OF_TEXT)
            config |= fast
            contents = {FAST: as_json(_by_character(characters))}
    return contents | {
        "tokenizer_config.json": as_json(config | special),
        "special_tokens_map.json": as_json(special),
    }


def special_ids(saved: dict[str, Any] | None) -> dict[str, int | None]:
    """Return the ids that begin and end a text, by their names in config.json. An unknown id is
    None rather than missing, because transformers reads a missing id as GPT-2's."""
    if saved is None or saved["type"] == tokenizer.IMAGES:
        end = None
    else:
        end = tokenizer.load(saved).end_of_text
    return {"bos_token_id": end, "eos_token_id": end}


def as_json(content: Mapping[str, Any]) -> bytes:
    """Format ``content`` as the bytes of a JSON file."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _by_character(characters: str) -> dict[str, Any]:
    """Return the content of tokenizer.json of a character tokenizer. ``unk_token`` is not in the
    vocabulary, so that the tokenizers library rejects an unknown character, as cuboid does."""
    model: dict[str, Any] = {
        "type": "WordLevel",
        "vocab": {c: number for number, c in enumerate(characters)},
        "unk_token": "[UNK]",
    }
    return _tokenizer_json(BY_CHARACTER, {"type": "Fuse"}, model)


def _by_byte() -> dict[str, Any]:
    """Return the content of tokenizer.json of the byte tokenizer: byte-pair encoding without
    merges."""
    ids = gpt2.byte_of_character()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": ids | {gpt2.END_OF_TEXT: BYTES},
        "merges": [],
    }
    by_byte = {**level, "use_regex": False}
    return _tokenizer_json(by_byte, by_byte, model)


def _tokenizer_json(
    pre_tokenizer: Mapping[str, Any], decoder: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of tokenizer.json of a tokenizer that neither changes the text nor adds
    tokens."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _load(path: Path) -> Any:
    """Read a JSON file; None if the file does not exist or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
