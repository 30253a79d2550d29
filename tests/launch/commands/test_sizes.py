"""cuboid sizes, compared with published counts and with a file on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.inout.saved_model import shapes_of
from engine.inout.tensor_writers import write_safetensors
from launch import cli
from models.config import GPTConfig
from models.presets import PRESETS

DEMO = str(Path(__file__).parents[3] / "gpt_configs" / "demo.py")
CONFIG = """
BATCH_SIZE = 1
SEQ_LEN = 16
MAX_STEPS = 1
model = dict(n_layer=2, n_head=2, n_embd=16, vocab_size=65, tie_embeddings=False)
data = dict(type="synthetic")
"""
# Sequence length, vocabulary; layers, heads and width of a model, and its parameters
PUBLISHED = {
    "image GPT": (
        (1023, 512),
        {
            (12, 8, 256): 10_001_664,
            (24, 8, 256): 19_478_784,
            (32, 8, 256): 25_796_864,
            (32, 8, 512): 101_925_376,
            (48, 8, 512): 152_363_520,
            (64, 8, 512): 202_801_664,
            (64, 32, 1024): 808_256_512,
            (24, 8, 512): 76_706_304,
        },
    ),
    "characters": (
        (128, 59),
        {
            (8, 8, 512): 25_346_048,
            (8, 8, 768): 56_893_440,
            (12, 8, 768): 85_244_928,
            (12, 12, 768): 85_244_928,
            (12, 8, 1024): 151_408_640,
            (16, 8, 1024): 201_793_536,
            (24, 16, 1024): 302_563_328,
            (36, 16, 1024): 453_718_016,
            (36, 20, 1280): 708_705_280,
        },
    ),
    "billions": (
        (128, 65),
        {
            (15, 16, 3072): 1_700_090_880,
            (13, 16, 8192): 10_472_497_152,
            (25, 16, 8192): 20_137_451_520,
            (56, 16, 8192): 45_105_250_304,
            (22, 16, 3072): 2_493_093_888,
            (4, 16, 3072): 453_943_296,
            (14, 16, 3072): 1_586_804_736,
            (21, 16, 8192): 16_915_800_064,
        },
    ),
}


def sizes(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["sizes", "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("family", PUBLISHED)
def test_parameters_of_a_config_are_the_published_ones(capsys, tmp_path, family):
    (seq_len, vocabulary), models = PUBLISHED[family]
    names = []
    for number, (layers, heads, width) in enumerate(models):
        path = tmp_path / f"{number}.py"
        path.write_text(
            CONFIG + f"model |= dict(n_layer={layers}, n_head={heads}, n_embd={width})\n"
        )
        names.append(str(path))
    found = sizes(capsys, *names, f"SEQ_LEN={seq_len}", f"model.vocab_size={vocabulary}")
    assert [found[name]["parameters"] for name in names] == list(models.values())


def test_every_preset_is_listed_by_default(capsys):
    found = sizes(capsys, "--seq-len=512")
    assert found.keys() == PRESETS.keys()
    assert found["gpt2"]["parameters"] == 124_439_808
    assert found["languini-xl"]["parameters"] == 1_478_160_384
    cli.main(["sizes"])
    table, end = capsys.readouterr().out.split("\n\n")
    header, *lines = table.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert {len(line) for line in lines} == {len(header)}
    assert end == "Config files: cuboid sizes gpt_configs/*.py\n"


def test_a_vocabulary_from_the_data_is_read_where_the_data_is(tmp_path, capsys):
    """The rows of other configs are complete in any case."""
    data = CONFIG.replace("vocab_size=65", "vocab_size='data'")
    for name in ("here", "missing"):
        text = f"dict(type='text', tokenizer='char', path={str(tmp_path / name) + '.txt'!r})"
        (tmp_path / f"{name}.py").write_text(data.replace('dict(type="synthetic")', text))
    (tmp_path / "here.txt").write_text("to be or not to be")
    names = [str(tmp_path / f"{name}.py") for name in ("here", "missing")]
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert cli.main(["sizes", "--json", *names, "gpt2_small"], environ) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [one["vocab_size"] for one in found.values()] == [7, 50257, 50257]
    assert captured.err.count("\n") == 1
    assert f"note: {names[1]}:5: model.vocab_size='data' is not determined" in captured.err


def test_bytes_are_those_of_an_exported_file(capsys, tmp_path):
    """Without the header of the file."""
    (tmp_path / "small.py").write_text(CONFIG)
    (found,) = sizes(capsys, str(tmp_path / "small.py")).values()
    config = GPTConfig(
        n_layer=2,
        n_head=2,
        n_embd=16,
        head_dim=8,
        n_inner=64,
        vocab_size=65,
        block_size=16,
        tie_embeddings=False,
    )
    shapes = shapes_of(config)
    for dtype, name in (
        (torch.float64, "float64"),
        (torch.float32, "float32"),
        (torch.bfloat16, "bf16, fp16"),
        (torch.float16, "bf16, fp16"),
    ):
        path = tmp_path / str(dtype)
        tensors = ((of, torch.zeros(shape)) for of, shape in shapes.items())
        write_safetensors(path, tensors, shapes, dtype=dtype, metadata={})
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        assert found["bytes"][name] == len(content) - header


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpt2_smal"], "gpt2_smal is neither a preset nor a file"),
        (["gpt2_small", "model.n_layer=3"], "model.n_layer=3 needs a config file"),
    ],
)
def test_invalid_names_are_rejected(capsys, words, message):
    assert cli.main(["sizes", *words]) == 2
    assert message in capsys.readouterr().err
