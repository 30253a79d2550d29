"""Hugging Face folders: transformers loads those of cuboid, and cuboid those of transformers."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint.directory import CheckpointDirectory
from engine.checkpoint.load import SavedCheckpoint
from engine.data.tokenizers.gpt2 import GPT2
from engine.errors import UserError
from engine.inout.export import ExportOptions, export, exporter
from engine.inout.import_model import import_model
from engine.inout.open_model import open_saved_model
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.gpt import GPT
from models.parallel.context import ParallelContext
from tests.engine.inout.support import (
    SIZES,
    UNTIED,
    MaliciousPickle,
    theirs,
    torch_file_of,
    trained,
)
from tests.support.checkpoints import write
from tests.support.training import TrainingCase
from tests.support.worlds import run_world

transformers = pytest.importorskip("transformers")

PLAIN = ExportOptions(dtype=torch.float32, shard_bytes=10**9)
TOKENIZER = {"type": "gpt2", **GPT2().state()}
# n_head x head_dim is n_embd; the vocabulary is odd, which two ranks pad
RUNS = {
    "2d": TrainingCase(mode="2d", tensor=4, heads=10),
    "pp1d": TrainingCase(mode="1d", tensor=2, pipeline=2, heads=10, tied=False),
    "zero3": TrainingCase(data=4, zero=3, heads=10, dtype=torch.float64),
}


def to_hf(model: Any, out: Path, options: ExportOptions = PLAIN) -> Path:
    return export(model, exporter("hf"), options, out=out, force=False)


def write_all(rank: int, size: int, runs: dict[str, TrainingCase], folder: Path) -> None:
    for name, run in runs.items():
        write(rank, size, run, folder / name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    run_world(4, write_all, RUNS, folder)
    return folder


def same_logits(sizes: GPTConfig, ours: GPT, exported: Path) -> bool:
    model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    assert type(model) is transformers.GPT2LMHeadModel
    assert model.config.vocab_size == sizes.vocab_size
    assert model.lm_head.weight.shape[0] == sizes.vocab_size
    ids = torch.randint(sizes.vocab_size, (3, 14), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = ours.logits(ours(ours.embed(ids), ids.shape[1]))
        found = model(ids).logits.flatten(0, 1)
    return float((found - expected).norm() / expected.norm()) <= 1e-5


def loaded(stored: SavedCheckpoint, sizes: GPTConfig) -> GPT:
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float32, compute=torch.float32
    )
    model = GPT(sizes, part).eval()
    stored.load_model(ModelChunks([model]))
    return model


@pytest.mark.parametrize("name", RUNS)
def test_checkpoint_of_any_layout_has_the_same_logits_in_transformers(
    name: str, written: Path, tmp_path: Path
) -> None:
    sizes, path = RUNS[name].config, CheckpointDirectory(written / name).folder(2)
    exported = to_hf(open_saved_model(path), tmp_path / "out")
    assert same_logits(sizes, loaded(SavedCheckpoint(path), sizes), exported)


SCALED = replace(UNTIED, scale_embedding=True)


@pytest.mark.parametrize(
    "sizes", [SIZES, UNTIED, SCALED], ids=["tied, tanh", "untied, erf", "scaled embedding"]
)
def test_random_parameters_give_the_same_logits_in_transformers(
    sizes: GPTConfig, tmp_path: Path
) -> None:
    """Every parameter is random, so a misplaced or transposed one changes the logits."""
    model = trained(sizes)
    part = ParallelContext.single_device(
        torch.device("cpu"), dtype=torch.float32, compute=torch.float32
    )
    ours = GPT(sizes, part).eval()
    with torch.no_grad():
        for name, tensor in model.read_tensors():
            ours.get_parameter(name).copy_(tensor)
    assert same_logits(sizes, ours, to_hf(model, tmp_path / "out"))
    small = ExportOptions(dtype=torch.float32, shard_bytes=9000)
    sharded = to_hf(model, tmp_path / "sharded", small)
    assert len([*sharded.glob("model-*.safetensors")]) > 5
    assert same_logits(sizes, ours, sharded)


@pytest.mark.parametrize("sizes", [SIZES, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("shard", [None, 9000, 20_000], ids=lambda shard: f"shards of {shard}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_import_then_export_changes_no_byte(
    sizes: GPTConfig, shard: int | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, there, back = theirs(sizes).to(dtype), tmp_path / "there", tmp_path / "back"
    model.save_pretrained(there, max_shard_size=shard or "5GB")
    import_model(open_saved_model(there), tmp_path / "ours")
    options = ExportOptions(dtype=dtype, shard_bytes=shard or 10**9)
    to_hf(open_saved_model(tmp_path / "ours"), back, options)

    def weights(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("model*")}

    assert weights(back) == weights(there)
    assert len(weights(there)) > (1 if shard else 0)
    exported = transformers.GPT2Config.from_pretrained(back).to_dict()
    expected = model.config.to_dict()
    differ = {name for name in expected if expected[name] != exported[name]}
    # GPT-2's ids are its default, and n_inner None is said in full
    assert differ <= {"bos_token_id", "eos_token_id", "n_inner", "transformers_version", "dtype"}


def test_scaled_embedding_that_is_also_the_head_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scale_embedding=True with .*export to safetensors or pt"):
        to_hf(trained(replace(SIZES, scale_embedding=True)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", [None, 9000])
def test_pytorch_bin_files_are_read(shard: int | None, tmp_path: Path) -> None:
    model = theirs()
    model.save_pretrained(tmp_path, max_shard_size=shard or "5GB", safe_serialization=False)
    assert [*tmp_path.glob("pytorch_model*.bin")]
    found = dict(open_saved_model(tmp_path).read_tensors())
    model.save_pretrained(tmp_path / "safe")
    expected = dict(open_saved_model(tmp_path / "safe").read_tensors())
    assert {*found} == {*expected}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_old_folders_without_prefix_and_with_masks_are_read(tmp_path: Path) -> None:
    """OpenAI's original folders are of this kind; their configs also have fewer keys."""
    model = theirs().half()
    state = model.transformer.state_dict()
    masks = {f"h.{n}.attn.bias": torch.ones(1, 1, 24, 24, dtype=torch.bool) for n in range(3)}
    masks["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state | masks, tmp_path / "model.safetensors")
    config = model.config.to_dict()
    sizes = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner", "model_type")
    (tmp_path / "config.json").write_text(json.dumps({name: config[name] for name in sizes}))
    found = open_saved_model(tmp_path)
    assert found.dtype == torch.float16
    assert found.config == replace(SIZES, embd_pdrop=0.1, resid_pdrop=0.1, attn_pdrop=0.1)
    model.save_pretrained(tmp_path / "new")
    assert same(found, open_saved_model(tmp_path / "new"))


def test_malicious_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    theirs().save_pretrained(tmp_path / "x", safe_serialization=False)
    planted = torch_file_of(pickle.dumps({"transformer.wte.weight": MaliciousPickle()}, protocol=2))
    (tmp_path / "x" / "pytorch_model.bin").write_bytes(planted)
    with pytest.raises(
        UserError, match=r"pytorch_model\.bin contains more than tensors: it was not loaded"
    ):
        open_saved_model(Path("x"))
    assert not (tmp_path / "canary").exists()


def test_gpt2_tokenizer_is_exported_and_imported(tmp_path: Path) -> None:
    sizes = replace(SIZES, vocab_size=50_257, n_layer=1)
    out = to_hf(trained(sizes, tokenizer=TOKENIZER), tmp_path / "out")
    text = "The quick brown fox's 12 jumps,\n\n  naïve 狐 <|endoftext|>"
    for fast in (True, False):
        words = transformers.AutoTokenizer.from_pretrained(out, use_fast=fast)
        plain = text.removesuffix("<|endoftext|>")
        assert words(plain)["input_ids"] == GPT2().encode(plain).tolist()
        assert words.eos_token_id == GPT2().end_of_text
        assert words.model_max_length == sizes.block_size
        words.save_pretrained(tmp_path / str(fast))
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 50_256
    assert open_saved_model(out).tokenizer == TOKENIZER
    shutil.copy(tmp_path / "False" / "vocab.json", out)  # as transformers writes it
    assert open_saved_model(out).tokenizer == TOKENIZER
    (out / "vocab.json").write_text('{"a": 0}')
    assert open_saved_model(out).tokenizer is None


def test_export_without_tokenizer_has_no_end_of_text_id(tmp_path: Path) -> None:
    out = to_hf(trained(), tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    ids = model.generate(torch.tensor([[1, 2]]), max_new_tokens=5, do_sample=False)
    assert ids.shape == (1, 7)


# Refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama', but only 'gpt2' can be read"),
        ({"activation_function": "relu"}, "activation_function='relu'; supported: gelu_new, gelu_"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False; only True can be read"),
        ({"scale_attn_by_inverse_layer_idx": True}, "_by_inverse_layer_idx=True; only False can"),
        ({"add_cross_attention": True}, "add_cross_attention=True; only False can be read"),
        ({"n_head": 5}, "n_embd=32 is not a multiple of n_head=5"),
        ({"n_layer": "3"}, "n_layer='3' is not 1 or more"),
        ({"n_layer": 4}, "not the state of this GPT-2; missing: h.3.ln_1.weight, h.3.ln_1.bias"),
        ({"n_layer": 2}, "unexpected: transformer.h.2.attn.c_attn.bias"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
    ],
    ids=str,
)
def test_unsupported_gpt2_config_is_rejected(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    out = to_hf(trained(), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(UserError) as caught:
        open_saved_model(out)
    assert str(caught.value).startswith(f"{out}: ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_config_that_does_not_match_the_tensors_leaves_no_files(tmp_path: Path) -> None:
    out = to_hf(trained(), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"n_inner": 81}))
    with pytest.raises(UserError, match=r"c_fc\.weight is \[32, 80\], not \[32, 81\]"):
        import_model(open_saved_model(out), tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folder_without_weights_or_of_another_model_is_rejected(tmp_path: Path) -> None:
    out = to_hf(trained(), tmp_path / "out")
    (out / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"out has no weights; add one of model\.safetensors, model\."
    ):
        open_saved_model(out)
    for text in ("", "[]", "{"):
        (out / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"out: "):
            open_saved_model(out)


def test_model_that_gpt2_cannot_represent_exports_to_other_formats_only(tmp_path: Path) -> None:
    model = trained(replace(SIZES, n_head=3))
    with pytest.raises(
        UserError,
        match=r"^made/up: n_head=3 x head_dim=8 is 24, not n_embd=32: Hugging Face's GPT-2 cannot "
        r"hold this model$",
    ):
        to_hf(model, tmp_path / "out")
    assert [*tmp_path.iterdir()] == []
    out = export(model, exporter("safetensors"), PLAIN, out=tmp_path / "x.safetensors", force=False)
    again = open_saved_model(out)
    assert again.config == model.config
    assert same(again, model)


def same(one: Any, other: Any) -> bool:
    ours, expected = dict[str, Tensor](one.read_tensors()), dict[str, Tensor](other.read_tensors())
    assert ours.keys() == expected.keys()
    return all(torch.equal(ours[name], expected[name]) for name in expected)
