"""The registries of sources and tokenizers list their modules without importing them."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.data import source, tokenizer
from engine.errors import UserError
from tests.engine.data.support import Ask


def test_sources_and_tokenizers_are_named_by_their_files() -> None:
    folder = Path(source.__file__).parent
    for registry, package in ((source, "sources"), (tokenizer, "tokenizers")):
        files = {path.stem for path in (folder / package).glob("*.py")} - {"__init__"}
        assert set(registry.names()) == files
    assert {"auto", "text", "json", "jsonl", "synthetic"} <= set(source.names())
    assert {"char", "gpt2"} <= set(tokenizer.names())


def test_listing_sources_and_tokenizers_imports_none() -> None:
    code = (
        "import sys; from engine.data import source, tokenizer;"
        "source.names(), tokenizer.names();"
        "print([m for m in sys.modules if m in ('torch', 'numpy', 'tiktoken')"
        " or m.startswith(('engine.data.sources.', 'engine.data.tokenizers.'))])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout == "[]\n"


def test_new_source_is_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ask: Ask) -> None:
    from engine.data import sources

    (tmp_path / "upside.py").write_text(
        "from engine.data.source import Corpus\n"
        "def open_corpus(request):\n"
        "    return Corpus(train=None, validation=None, tokenizer=None,\n"
        "                  description=f'upside {request.seed}', fingerprint='')\n"
    )
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "engine.data.sources.upside", raising=False)
    monkeypatch.setattr(
        sources.__spec__, "submodule_search_locations", list(sources.__path__), raising=True
    )
    assert "upside" in source.names()
    assert source.open_corpus("upside", ask(seed=3)).description == "upside 3"


def test_unknown_names_are_rejected_with_the_known_ones(ask: Ask) -> None:
    with pytest.raises(UserError, match=r"data.type='parquet' is not a source; .*jsonl.*text"):
        source.open_corpus("parquet", ask())
    with pytest.raises(UserError, match=r"data.tokenizer='llama' is not a tokenizer; .*char.*gpt2"):
        source.open_corpus("text", ask(tokenizer="llama"))


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HOME": "/home/ada"}, "/home/ada/.cache/cuboid"),
        ({"HOME": "/home/ada", "XDG_CACHE_HOME": ""}, "/home/ada/.cache/cuboid"),
        ({"HOME": "/home/ada", "XDG_CACHE_HOME": "relative"}, "/home/ada/.cache/cuboid"),
        ({"HOME": "/home/ada", "XDG_CACHE_HOME": "/big"}, "/big/cuboid"),
    ],
)
def test_default_cache_follows_xdg(environ: dict[str, str], folder: str) -> None:
    assert source.default_cache(environ) == Path(folder)
