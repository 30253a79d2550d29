"""Token ids of books in the folders of Languini, read in lanes (``engine.data.batches.lanes``).

``data.path`` is the folder of one vocabulary. File lists in its parent name the shards of each
split, relative to ``data.path``, and their lengths::

    data/books/file_list_train.npy      the split 'train', an array of text [N, 2]
    data/books/file_list_test_iid.npy   the split 'test'
    data/books/books_16384/             data.path
    data/books/books_16384/files/NAME.npy
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from engine.config.splits import TRAIN, VALIDATION
from engine.data.batches.lanes import LaneSplit
from engine.data.source import Corpus, SourceRequest
from engine.data.token_files.languini_lists import Book, list_path, lists_in, read_list
from engine.data.token_files.token_shards import folder_of_shards, tokenizer_of_shards
from engine.errors import UserError


def open_corpus(request: SourceRequest) -> Corpus:
    folder = _folder(request)
    tokenizer = tokenizer_of_shards(folder, request)
    if tokenizer.end_of_text is None:
        raise UserError(
            f"data.tokenizer={request.tokenizer!r} has no token that separates documents, which "
            "data.type='lanes' needs"
        )
    splits = {name: read_list(path, folder) for name, path in lists_in(folder.parent).items()}
    if TRAIN not in splits:
        raise UserError(
            f"data.path={str(folder)!r}: {list_path(folder.parent, TRAIN)} is missing; "
            "`cuboid prepare` writes it"
        )
    if request.validation == 0:
        splits.pop(VALIDATION, None)
    elif VALIDATION not in splits:
        splits[TRAIN], splits[VALIDATION] = _hold_out(splits[TRAIN], request.validation)
    _check_lanes(len(splits[TRAIN]), request, folder)

    def opened(books: list[Book], *, repeats: bool) -> LaneSplit:
        lanes = request.global_batch if repeats else min(request.eval_lanes, len(books))
        return LaneSplit.of(
            books,
            lanes=lanes,
            seq_len=request.seq_len,
            separator=tokenizer.end_of_text or 0,
            vocabulary=tokenizer.size,
            repeats=repeats,
        )

    train = splits.pop(TRAIN)
    content = {
        "train": _names_and_sizes(train, folder),
        "others": {name: _names_and_sizes(books, folder) for name, books in splits.items()},
        "seq_len": request.seq_len,
        "eval_lanes": request.eval_lanes,
        "tokenizer": tokenizer.state(),
    }
    tokens = sum(book.shard.tokens for book in train)
    validation = opened(splits.pop(VALIDATION, []), repeats=False)
    return Corpus(
        train=opened(train, repeats=True),
        validation=validation,
        other_splits={name: opened(books, repeats=False) for name, books in splits.items()},
        tokenizer=tokenizer,
        description=f"data.path={str(folder)!r}: {tokens:,} tokens of {len(train):,} books in "
        f"{request.global_batch:,} lanes",
        fingerprint=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        ordered_by_batch=True,
    )


def vocabulary_size(request: SourceRequest) -> int:
    """Return the number of ids of the tokenizer. Raises UserError."""
    return tokenizer_of_shards(_folder(request), request).size


def _folder(request: SourceRequest) -> Path:
    """Return data.path, which must be the folder of one vocabulary. Raises UserError."""
    content = " of shards, which is in the folder of the file lists"
    folder = folder_of_shards(request, "lanes", content)
    if lists_in(folder):
        inner = sorted(str(each) for each in folder.iterdir() if each.is_dir())
        remedy = (
            f"set data.path to a folder of shards in it: {' or '.join(map(repr, inner))}"
            if inner
            else "it has no folder of shards, which cuboid prepare --layout languini makes"
        )
        raise UserError(f"data.path={str(folder)!r} is the folder of the file lists; {remedy}")
    return folder


def _hold_out(books: list[Book], share: float) -> tuple[list[Book], list[Book]]:
    """Divide books into books to train on and held-out books: the last ones, with at least
    ``share`` of the listed tokens."""
    lengths = [book.listed for book in books]
    needed = share * sum(lengths)
    sums = list(itertools.accumulate(reversed(lengths)))
    held_out = next((n for n, tokens in enumerate(sums, 1) if tokens >= needed), len(books))
    return books[:-held_out], books[-held_out:]


def _check_lanes(books: int, request: SourceRequest, folder: Path) -> None:
    if books < request.global_batch:
        raise UserError(
            f"data.path={str(folder)!r} has {books:,} books to train on, fewer than the "
            f"{request.global_batch:,} samples of a step, each of which reads a lane of books of "
            f"its own; use at most {books:,} samples per step, or more books"
        )


def _names_and_sizes(books: list[Book], folder: Path) -> list[Any]:
    """Return the path, number of tokens and file size of each book, which identify the data
    unread."""
    return [
        [str(book.shard.path.relative_to(folder)), book.listed, book.shard.bytes] for book in books
    ]
