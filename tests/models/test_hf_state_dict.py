"""The serial GPT against transformers' GPT2LMHeadModel with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.chunks import ModelChunks
from models.config import GPTConfig
from models.gpt import GPT
from models.hf_state_dict import from_hf, to_hf
from models.load_state import load_state
from models.parallel.context import ParallelContext
from models.parallel.layers import initialise, named_shards
from tests.support.training import TrainingCase, open_partition
from tests.support.worlds import run_world

SIZES = GPTConfig(
    n_layer=3, n_head=4, n_embd=32, head_dim=8, n_inner=80, vocab_size=67, block_size=24
)
IGNORED = -100


def theirs(sizes: GPTConfig, seed: int = 0) -> Any:
    """Build a GPT2LMHeadModel in training mode, with random biases and norms."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        n_embd=sizes.n_embd,
        n_inner=sizes.n_inner,
        vocab_size=sizes.vocab_size,
        n_positions=sizes.block_size,
        activation_function="gelu_new" if sizes.activation == "gelu_tanh" else "gelu",
        layer_norm_epsilon=sizes.layer_norm_epsilon,
        tie_word_embeddings=sizes.tie_embeddings,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )
    model = transformers.GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def ours(sizes: GPTConfig) -> GPT:
    model = GPT(
        sizes,
        ParallelContext.single_device(
            torch.device("cpu"), dtype=torch.float32, compute=torch.float32
        ),
    )
    initialise(model, 1)
    return model


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("chunk", [None, 7])
def test_logits_loss_and_all_gradients_equal_transformers(
    activation: Any, tied: bool, chunk: int | None
) -> None:
    sizes = replace(SIZES, activation=activation, tie_embeddings=tied)
    reference, model = theirs(sizes), ours(sizes)
    model.head = replace(model.head, chunk=chunk)
    load_state(ModelChunks([model]), from_hf(reference.state_dict(), sizes))

    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(sizes.vocab_size, (3, 20), generator=draw)
    labels = ids.clone()
    labels[0, :9] = IGNORED
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)  # transformers shifts the labels itself
    wanted = reference(ids, labels=labels)
    x = model(model.embed(ids), ids.shape[1])
    assert relative(model.logits(x), wanted.logits.flatten(0, 1)) <= 1e-5

    loss = model.loss(x, shifted, 1 / int((shifted != IGNORED).sum()))
    assert float(loss.detach()) == pytest.approx(float(wanted.loss.detach()), rel=1e-5)

    loss.backward()
    wanted.loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in reference.named_parameters(remove_duplicate=False)
    }
    for name, gradient in from_hf(gradients, sizes):  # a gradient has the form of its weight
        found = model.get_parameter(name).grad
        assert found is not None
        assert relative(found, gradient) <= 1e-5, name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_state_dict_round_trip_is_bit_exact(tied: bool) -> None:
    sizes = replace(SIZES, tie_embeddings=tied)
    state = theirs(sizes).state_dict()
    model = ours(sizes)
    load_state(ModelChunks([model]), from_hf(state, sizes))
    back = dict(to_hf(((n, p.detach()) for n, p in model.named_parameters()), sizes))
    assert back.keys() == state.keys() - ({"lm_head.weight"} if tied else set())
    assert all(torch.equal(back[name], state[name]) for name in back)
    theirs(sizes, seed=1).load_state_dict(state | back, strict=True)


def test_attention_weights_are_converted_to_head_major() -> None:
    """Column (part n, head h, entry d) of transformers' weight is column (h, n, d) of ours."""
    state = theirs(SIZES).state_dict()
    weight = dict(from_hf(state, SIZES))["h.1.attn.c_attn.weight"]
    for part in range(3):
        for head in range(4):
            here = 8 * (3 * head + part)
            there = 32 * part + 8 * head
            wanted = state["transformer.h.1.attn.c_attn.weight"][:, there : there + 8]
            assert torch.equal(weight[:, here : here + 8], wanted)


def test_state_of_gpt2_without_head_and_with_old_mask_buffers_is_accepted() -> None:
    state = theirs(SIZES).transformer.state_dict()
    assert "wte.weight" in state
    old = state | {"h.0.attn.bias": torch.ones(1, 1, 24, 24), "h.2.attn.masked_bias": torch.ones(1)}
    assert [name for name, _ in from_hf(old, SIZES)] == [name for name, _ in from_hf(state, SIZES)]


def faulty_states() -> Iterator[tuple[str, dict[str, Any], GPTConfig, str]]:
    untied = replace(SIZES, tie_embeddings=False)
    wide = replace(SIZES, vocab_size=68)
    extra = {"transformer.h.3.ln_1.weight": torch.ones(32)}
    yield "missing", {"transformer.ln_f.bias": None}, SIZES, r"missing: ln_f\.bias"
    yield "unexpected", extra, SIZES, r"unexpected: transformer\.h\.3\.ln_1\.weight"
    yield "shape", {}, wide, r"transformer\.wte\.weight is \[67, 32\], not \[68, 32\]"
    yield "no head", {"lm_head.weight": None}, untied, r"missing: lm_head\.weight"
    yield "another head", {"lm_head.weight": torch.ones(67, 32)}, SIZES, "tie_embeddings=False"


@pytest.mark.parametrize(
    ("change", "sizes", "message"),
    [case[1:] for case in faulty_states()],
    ids=[case[0] for case in faulty_states()],
)
def test_state_dict_of_another_model_raises(
    change: dict[str, Tensor | None], sizes: GPTConfig, message: str
) -> None:
    state = theirs(SIZES).state_dict() | change
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        list(from_hf(state, sizes))


def test_error_lists_all_missing_and_unexpected_names() -> None:
    with pytest.raises(ValueError, match=r"missing: wte\.weight, wpe\.weight.*; unexpected: a, b"):
        from_hf({"a": torch.ones(1), "b": torch.ones(1)}, SIZES)


def test_export_of_sizes_unsupported_by_transformers_raises() -> None:
    with pytest.raises(ValueError, match="n_head=3 x head_dim=8 is 24, not n_embd=32"):
        to_hf([], replace(SIZES, n_head=3))


def test_load_state_with_unknown_misshaped_or_missing_parameter_raises() -> None:
    model = ours(SIZES)
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"h\.9\.x is not a parameter"):
        load_state(ModelChunks([model]), [("h.9.x", torch.ones(1))])
    with pytest.raises(ValueError, match=r"ln_f\.bias is \[31\], the model's is \[32\]"):
        load_state(ModelChunks([model]), [("ln_f.bias", torch.ones(31))])
    del whole["h.1.ln_2.bias"]
    with pytest.raises(ValueError, match=r"missing: h\.1\.ln_2\.bias$"):
        load_state(ModelChunks([model]), whole.items())


class Reads(Mapping[str, Tensor]):
    """A state dict that copies a tensor at each access and records the names accessed."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state, self.asked = state, list[str]()

    def __getitem__(self, key: str) -> Tensor:
        self.asked.append(key)
        return self.state[key].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def test_state_dict_is_read_lazily_tensor_by_tensor() -> None:
    reads = Reads({k: v for k, v in theirs(SIZES).state_dict().items() if k != "lm_head.weight"})
    for number, _ in enumerate(from_hf(reads, SIZES), 1):
        assert len(reads.asked) == number
    assert len(reads.asked) == len(reads)


def load_parts(rank: int, size: int, run: TrainingCase, state: dict[str, Tensor]) -> list[str]:
    """Load a sharded model and return the names of parameters that differ from their shard."""
    model = GPT(run.config, open_partition(run, rank))
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    load_state(ModelChunks([model]), state.items())
    wrong = []
    for name, box in named_shards(model).items():
        held = model.get_parameter(name).detach().clone()
        right = torch.equal(held[box.valid_slices], state[name][box.slices])
        held[box.valid_slices] = 0
        if not right or held.count_nonzero():  # padding must be zero
            wrong.append(name)
    return wrong


@pytest.mark.parametrize(
    "run",
    [
        TrainingCase(mode="1d", tensor=3),
        TrainingCase(mode="2d", tensor=4),
        TrainingCase(mode="2.5d", tensor=2, depth=2),
    ],
    ids=lambda run: run.name,
)
def test_sharded_model_loads_its_shards(run: TrainingCase) -> None:
    whole = ours(run.config)
    state = {name: parameter.detach() for name, parameter in whole.named_parameters()}
    assert run_world(run.layout.gpus, load_parts, run, state) == [[]] * run.layout.gpus
