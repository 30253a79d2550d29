"""Converts texts to token shards: on all cores, in bounded memory, and resumable.

The text is divided into blocks that depend on the input alone. A shard is written under a temporary
name, renamed when it is complete, and recorded in a journal with the number of its blocks. A
repeated command skips the blocks of the recorded shards, so it ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.input_files.data_file import DataFile
from engine.data.input_files.documents import Documents, JoinedDocuments
from engine.data.sources.auto import documents_of
from engine.data.token_files.token_shards import dtype_of
from engine.data.tokenize import unbroken
from engine.data.tokenizer import (
    FILE_NAME,
    Piece,
    Tokenizer,
    dump,
    load,
    read_saved,
    tokenizer_type,
)
from engine.errors import UserError
from engine.files.atomic_write import write_atomically
from engine.prepare.journal import Journal
from engine.prepare.output_formats import OutputFormat
from engine.prepare.parallel_encoder import EncodedBlock, ParallelEncoder, TextBlock
from engine.prepare.shard_writer import ShardWriter

BLOCK = 1 << 20  # characters
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TokenizerChoice:
    """The tokenizer that a user asks for."""

    name: str
    path: str | None
    """The file of its model, if it has one."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The result of a command. The counts include the shards that earlier commands wrote."""

    files: int
    shards: int
    tokens: int
    bytes: int
    """UTF-8 bytes of the text."""
    sha256: str
    """SHA-256 of the lines "SHA-256 of a shard, two spaces, its name", as sha256sum prints them."""
    resumed: int
    """Shards that an earlier command had completed."""


def prepare(
    files: Sequence[DataFile],
    output: OutputFormat,
    choice: TokenizerChoice,
    *,
    key: str = "text",
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Write the tokens of ``files``; continue where an earlier command was interrupted.

    Args:
        key: the key of the text in JSON objects.
        progress: called with the bytes of text that are done, and all bytes of the files.

    Raises:
        UserError: the files or the tokenizer cannot be used, or the folder has other tokens.
    """
    inputs = [documents_of(file, key) for file in files]
    request = _request(inputs, output, choice)
    output.folder.mkdir(parents=True, exist_ok=True)
    if output.manifest.exists():
        return _prepared_before(output, request)
    with Journal(journal_path(output), request) as journal:
        tokenizer = _tokenizer(inputs, output, choice)
        resumed, total = len(journal.shards), sum(text.size for text in inputs)
        dtype = dtype_of(tokenizer.size)
        with ParallelEncoder(output.folder / FILE_NAME, dtype, processes) as encoder:
            blocks = encoder.encode(_remaining_blocks(inputs, tokenizer, output, journal.shards))
            with closing(blocks):
                _write_shards(blocks, output, dtype, journal, lambda done: progress(done, total))
        if not any(shard["tokens"] for shard in journal.shards):
            raise UserError(
                f"{', '.join(text.name for text in inputs)} contains no text, so there are no "
                "tokens to write; name files with text"
            )
        output.finish(journal.shards)
        content = {"request": request, "shards": journal.shards}
        write_atomically(output.manifest, json.dumps(content, indent=1) + "\n")
        journal.remove()
        return _report(journal.shards, len(inputs), resumed)


def journal_path(output: OutputFormat) -> Path:
    """Return the path of the journal of unfinished work."""
    return output.manifest.with_suffix(".unfinished")


def _request(
    inputs: Sequence[Documents], output: OutputFormat, choice: TokenizerChoice
) -> dict[str, Any]:
    """Return everything on which the bytes of the shards depend, as a JSON object."""
    model = choice.path and DataFile(choice.path, "--tokenizer-path").digest
    return {
        "format": FORMAT,
        "layout": output.description,
        "tokenizer": choice.name,
        "model": model,
        "inputs": [[text.kind, text.size, text.digest] for text in inputs],
    }


def _prepared_before(output: OutputFormat, request: dict[str, Any]) -> Prepared:
    """Return the result of an earlier command. Raises UserError if its request was different."""
    content = json.loads(output.manifest.read_text(encoding="utf-8"))
    if content["request"] != request:
        raise UserError(
            f"{output.manifest} describes tokens of other inputs or of another tokenizer; "
            "choose another --output"
        )
    shards = content["shards"]
    return _report(shards, len(request["inputs"]), len(shards))


def _tokenizer(
    inputs: Sequence[Documents], output: OutputFormat, choice: TokenizerChoice
) -> Tokenizer:
    """Return the tokenizer in the folder; fit it and write it there if there is none. Raises
    UserError if it differs from ``choice``."""
    path = output.folder / FILE_NAME
    if saved := read_saved(path):
        found = load(saved)
        another = saved["type"] != choice.name
        if choice.path is not None and not another:
            stated = tokenizer_type(choice.name).fit((), choice.path)
            another = stated.state() != found.state()
        if another:
            raise UserError(
                f"{path} is another tokenizer than --tokenizer {choice.name}; choose another "
                "--output"
            )
        return found
    joined = JoinedDocuments(inputs, "all files").pieces()
    # The separator is in the vocabulary also if the text has one document
    tokenizer = tokenizer_type(choice.name).fit(itertools.chain(joined, [None]), choice.path)
    if tokenizer.end_of_text is None:
        raise UserError(
            f"--tokenizer {choice.name} has no token that separates documents; choose another"
        )
    write_atomically(path, json.dumps(dump(tokenizer)))
    return tokenizer


def _remaining_blocks(
    inputs: Sequence[Documents],
    tokenizer: Tokenizer,
    output: OutputFormat,
    done: Sequence[dict[str, Any]],
) -> Iterator[TextBlock]:
    """Return the blocks of the shards that are not complete. ``done``: the complete shards."""
    if not output.joins_files:  # a shard per file
        rest = range(len(done), len(inputs))
        files = (_blocks_of(inputs[i].pieces(), tokenizer, file=i) for i in rest)
        return itertools.chain.from_iterable(files)
    pieces = JoinedDocuments(inputs, "all files").pieces()
    blocks = _blocks_of(pieces, tokenizer, file=0)
    return itertools.islice(blocks, sum(shard["blocks"] for shard in done), None)


def _blocks_of(pieces: Iterator[Piece], tokenizer: Tokenizer, *, file: int) -> Iterator[TextBlock]:
    """Yield a stream of text in blocks of ``BLOCK`` characters or more; the last may be shorter."""
    texts: list[Piece] = []
    size = 0
    for text in unbroken(pieces, tokenizer):
        texts.append(text)
        size += len(text or "")
        if size >= BLOCK:
            yield TextBlock(file=file, texts=tuple(texts))
            texts, size = [], 0
    yield TextBlock(file=file, texts=tuple(texts), ends_file=True)


def _write_shards(
    blocks: Iterator[EncodedBlock],
    output: OutputFormat,
    dtype: np.dtype[Any],
    journal: Journal,
    progress: Callable[[int], None],
) -> None:
    """Write the blocks to shards, and record each complete shard in the journal."""
    done = sum(shard["bytes"] for shard in journal.shards)
    for first in blocks:
        name = output.shard_name(len(journal.shards))
        with ShardWriter(output.folder / name, dtype) as shard:
            size = number = 0
            for encoded in itertools.chain([first], blocks):
                shard.write(encoded.ids)
                size, number = size + encoded.bytes, number + 1
                progress(done + size)
                if output.is_complete(encoded.block, shard.tokens):
                    break
            digest = shard.finish()
        done += size
        journal.add(
            {
                "file": name,
                "tokens": shard.tokens,
                "blocks": number,
                "bytes": size,
                "sha256": digest,
            }
        )


def _report(shards: Sequence[dict[str, Any]], files: int, resumed: int) -> Prepared:
    """Sum up complete shards. ``files``: the number of input files."""
    lines = "".join(f"{shard['sha256']}  {shard['file']}\n" for shard in shards)
    return Prepared(
        files=files,
        shards=len(shards),
        tokens=sum(shard["tokens"] for shard in shards),
        bytes=sum(shard["bytes"] for shard in shards),
        sha256=hashlib.sha256(lines.encode()).hexdigest(),
        resumed=resumed,
    )
