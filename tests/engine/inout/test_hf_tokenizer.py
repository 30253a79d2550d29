"""Character, byte and SentencePiece tokenizers in an exported folder, loaded by transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.data.tokenizer import dump
from engine.data.tokenizers.bytes import Bytes
from engine.data.tokenizers.char import Char
from engine.errors import UserError
from engine.generation.text import SamplingOptions, generate_ids, load_model
from engine.inout.export import ExportOptions, export, exporter
from engine.inout.import_model import config_for
from engine.inout.open_model import open_saved_model
from launch import cli
from tests.engine.inout.support import SIZES, trained, with_tensors

TEXT = "One\n two\t\r\n  tabs, 'quotes' & ümlauts Ünḯ 日本 \U0001f600\U0001d518 \x03 \ufeff\xa0."
WORDS = Char.fit([TEXT])
WORDS, _ = WORDS.joined(Char.fit(["zyx[UNK]"]))  # not in the order of code points
SAVED = dump(WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("char") / "hf"
    options = ExportOptions(dtype=torch.float32, shard_bytes=10**9)
    model = trained(replace(SIZES, vocab_size=80), tokenizer=SAVED, trained_length=11)
    return export(model, exporter("hf"), options, out=path, force=False)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [TEXT, "", " ", "\n", "\n\n\n", "\r\n", "  two  ", "\U0001f600", "\x03", "[UNK]", " ,."],
)
def test_transformers_encodes_and_decodes_as_cuboid(theirs: Any, text: str) -> None:
    ids = WORDS.encode(text).tolist()
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == WORDS.decode(ids) == text


def test_every_id_decodes_as_in_cuboid(theirs: Any) -> None:
    for number, character in enumerate(WORDS.characters):
        assert theirs.decode([number]) == character
        assert theirs.convert_tokens_to_ids(character) == number
    assert len(theirs) == WORDS.size
    assert theirs.eos_token_id == WORDS.end_of_text is not None
    assert theirs.model_max_length == 11


def test_unknown_character_is_an_error_in_both(theirs: Any) -> None:
    with pytest.raises(UserError):
        WORDS.encode("Q")
    with pytest.raises(Exception, match="UNK"):
        theirs("Q")


def test_tokenizer_saved_by_transformers_is_read_back(
    folder: Path, theirs: Any, tmp_path: Path
) -> None:
    found = open_saved_model(folder)
    assert (found.tokenizer, found.length, found.config.block_size) == (SAVED, 11, 24)
    theirs.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert open_saved_model(tmp_path).tokenizer == SAVED
    assert 'data = dict(tokenizer="char")' in config_for(found, tmp_path)


def test_other_tokenizers_are_not_read_as_character_tokenizers(
    folder: Path, tmp_path: Path
) -> None:
    from engine.inout import hf_tokenizer

    content = json.loads((folder / "tokenizer.json").read_text())
    changes: list[dict[str, Any]] = [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": {**content["model"], "type": "WordPiece"}},
        {"model": {**content["model"], "vocab": {"a": 0, "bc": 1}}},
        {"model": {**content["model"], "vocab": {"a": 0, "b": 2}}},
    ]
    for change in changes:
        (tmp_path / "tokenizer.json").write_text(json.dumps(content | change))
        assert hf_tokenizer.read(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("[")
    assert hf_tokenizer.read(tmp_path) is None


def test_generate_and_import_read_the_tokenizer(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(folder.parent)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    assert model.config.trained_length == 11
    ids = torch.tensor([WORDS.encode("two").tolist()])
    end = WORDS.end_of_text
    expected = model.generate(ids, do_sample=False, max_new_tokens=7, pad_token_id=0)[0]
    text = WORDS.decode([i for i in expected.tolist() if i != end])
    command = ["generate", "hf", "--prompt", "two", "--tokens", "7", "--temperature", "0"]
    assert cli.main(command, {}) == 0
    assert capsys.readouterr().out.removesuffix("\n") == text
    assert cli.main(["import", "hf", "--from", "hf", "--out", "in"], {}) == 0
    found = open_saved_model(Path("in"))
    assert (found.tokenizer, found.length) == (SAVED, 11)


@pytest.mark.parametrize("length", [11, 1, None])
def test_generation_never_uses_an_untrained_position(length: int | None) -> None:
    """NaN in the untrained positions does not change the generated ids."""
    whole = trained(replace(SIZES, vocab_size=80), tokenizer=SAVED, trained_length=length)
    kept = length or SIZES.block_size

    def poisoned() -> Any:
        for name, tensor in whole.read_tensors():
            if name == "wpe.weight":
                tensor = tensor.clone()
                tensor[kept:] = float("nan")
            yield name, tensor

    def cut() -> Any:
        for name, tensor in whole.read_tensors():
            yield name, tensor[:kept] if name == "wpe.weight" else tensor

    sizes = replace(whole.config, block_size=kept)
    texts = []
    for one in (
        with_tensors(whole, poisoned),
        with_tensors(whole, cut, config=sizes),
    ):
        model, words = load_model(one, torch.device("cpu"))
        prompt = words.encode("two").tolist()
        ids = generate_ids(model, prompt, SamplingOptions(tokens=60), vocabulary=words.size)
        texts.append(list(ids))  # an end of text does not end them
    assert texts[0] == texts[1]
    assert len(texts[0]) == 60


def test_byte_tokenizer_is_loaded_by_transformers_and_read_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from engine.inout import hf_tokenizer

    ours, saved = Bytes(), dump(Bytes())
    for name, content in hf_tokenizer.files(saved, 11).items():
        (tmp_path / name).write_bytes(content)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, "", " two  spaces", "\x00\r\n"):
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert (len(theirs), theirs.eos_token_id) == (ours.size, ours.end_of_text)
    assert hf_tokenizer.read(tmp_path) == saved


def test_sentencepiece_model_is_exported_unchanged() -> None:
    from engine.inout import hf_tokenizer

    saved = {"type": "sentencepiece", "model": "AAECAw=="}
    assert hf_tokenizer.files(saved, 11) == {"tokenizer.model": b"\0\1\2\3"}
