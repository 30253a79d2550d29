"""Token ids that ``cuboid prepare`` wrote: one row of tokens in several shards.

``data.path`` is the folder of ``tokens.json``, which has the lengths and hashes of the shards.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from engine.data.batches.train_validation_split import split_tokens
from engine.data.source import Corpus, SourceRequest
from engine.data.token_files.token_shards import (
    MANIFEST,
    ShardedIds,
    folder_of_shards,
    open_shard,
    tokenizer_of_shards,
)
from engine.errors import UserError


def open_corpus(request: SourceRequest) -> Corpus:
    name, folder = f"data.path={request.path!r}", _folder(request)
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = [(str(s["file"]), int(s["tokens"]), str(s["sha256"])) for s in content["shards"]]
    except FileNotFoundError:
        raise UserError(
            f"{name} has no {MANIFEST}, which `cuboid prepare` writes when it has finished; "
            "set data.path to its --output, or run it again"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / MANIFEST} cannot be read: {error}; run `cuboid prepare` again"
        ) from None
    shards = [open_shard(folder / file) for file, _, _ in listed]
    for shard, (_, tokens, _) in zip(shards, listed, strict=True):
        if shard.tokens != tokens:
            raise UserError(
                f"{shard.path} has {shard.tokens:,} tokens, but {tokens:,} in {MANIFEST}; "
                "restore it, or run `cuboid prepare` again"
            )
    tokenizer = tokenizer_of_shards(folder, request)
    ids = ShardedIds.of(shards)
    train, validation = split_tokens(
        ids, validation=request.validation, seq_len=request.seq_len, name=name
    )
    content = [listed, request.seq_len, request.validation, tokenizer.state()]
    return Corpus(
        train=train,
        validation=validation,
        tokenizer=tokenizer,
        description=f"{name}: {len(ids):,} tokens by {request.tokenizer}, vocabulary "
        f"{tokenizer.size:,}",
        fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )


def vocabulary_size(request: SourceRequest) -> int:
    """Return the number of ids of the tokenizer. Raises UserError."""
    return tokenizer_of_shards(_folder(request), request).size


def _folder(request: SourceRequest) -> Path:
    """Return data.path, which must be one folder. Raises UserError."""
    return folder_of_shards(request, "tokens")
