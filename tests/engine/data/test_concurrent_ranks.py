"""Processes of several ranks and jobs that open the same data at the same time."""

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.data.source import Corpus, SourceRequest, open_corpus
from tests.engine.data.support import Ask, ids_of, tokenizer_of

SPAWN = multiprocessing.get_context("spawn")


def _seen(corpus: Corpus) -> tuple[str, int, dict[str, Any]]:
    weighed = int((ids_of(corpus) * np.arange(len(ids_of(corpus)))).sum())
    return corpus.fingerprint, weighed, tokenizer_of(corpus).state()


def _open(request: SourceRequest, start: Barrier, results: Any) -> None:
    start.wait()
    results.put(_seen(open_corpus("text", request)))


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_concurrent_ranks_and_jobs_read_the_same_tokens(
    ask: Ask, tmp_path: Path, tokenizer: str
) -> None:
    """Two ranks of one job and one of another share a cache; then one runs alone."""
    start, results = SPAWN.Barrier(3), SPAWN.Queue()
    requests = [ask(tokenizer=tokenizer, notify=print) for _ in range(3)]
    processes = [
        SPAWN.Process(target=_open, args=(r, start, results), daemon=True) for r in requests
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    seen = [results.get() for _ in processes]
    alone = _seen(open_corpus("text", ask(tokenizer=tokenizer, cache=tmp_path / "another")))
    assert seen == [alone] * 3
    assert len(list((tmp_path / "cache").glob("*.tokens"))) == 1
    assert not list((tmp_path / "cache").glob("*.part"))
