"""Plain GPT-2 training steps: the baselines of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import BATCHES, OPTIMIZER, Step, Workload
from models.chunks import ModelChunks
from models.config import GPTConfig
from models.gpt import GPT
from models.hf_state_dict import to_hf
from models.parallel.context import ParallelContext

TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
"""[in, out] in Hugging Face's states, [out, in] in a linear layer."""


class PlainBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x [B, S, C]."""

    def __init__(self, gpt_config: GPTConfig) -> None:
        super().__init__()
        width = gpt_config.n_embd
        self.heads = gpt_config.n_head
        self.ln_1 = nn.LayerNorm(width, eps=gpt_config.layer_norm_epsilon)
        self.ln_2 = nn.LayerNorm(width, eps=gpt_config.layer_norm_epsilon)
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(width, gpt_config.n_inner),
                "c_proj": nn.Linear(gpt_config.n_inner, width),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        b, s, c = x.shape
        parts = self.attn["c_attn"](self.ln_1(x)).split(c, dim=2)
        q, k, v = (part.view(b, s, self.heads, c // self.heads).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](y.transpose(1, 2).reshape(b, s, c))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        out: Tensor = x + self.mlp["c_proj"](hidden)
        return out


class PlainGPT2(nn.Module):
    """ids [B, S] -> logits [B, S, vocabulary]: linear layers, SDPA, a tied head, as in nanoGPT."""

    def __init__(self, gpt_config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(gpt_config.vocab_size, gpt_config.n_embd)
        self.wpe = nn.Embedding(gpt_config.block_size, gpt_config.n_embd)
        self.h = nn.ModuleList([PlainBlock(gpt_config) for _ in range(gpt_config.n_layer)])
        self.ln_f = nn.LayerNorm(gpt_config.n_embd, eps=gpt_config.layer_norm_epsilon)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights from the state dict of a Hugging Face GPT-2."""
        named = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
        self.load_state_dict({n: t.t() if n.endswith(TRANSPOSED) else t for n, t in named.items()})


def plain(case: Workload) -> Step:
    """Build the training step of transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt_config = case.config
    config = GPT2Config(
        vocab_size=gpt_config.vocab_size,
        n_positions=gpt_config.block_size,
        n_embd=gpt_config.n_embd,
        n_layer=gpt_config.n_layer,
        n_head=gpt_config.n_head,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model: Any = GPT2LMHeadModel(config)
    model.load_state_dict(first_weights(gpt_config), strict=False)
    return plain_step(case, model, lambda output: output.logits)


def bare(case: Workload) -> Step:
    """Build the training step of PlainGPT2."""
    model = PlainGPT2(case.config)
    model.load(first_weights(case.config))
    return plain_step(case, model, lambda output: output)


def first_weights(gpt_config: GPTConfig) -> dict[str, Tensor]:
    """Return our initial weights as the state dict of a Hugging Face GPT-2."""
    same = ModelChunks(
        [
            GPT(
                gpt_config,
                ParallelContext.single_device(
                    torch.device("cpu"), dtype=torch.float32, compute=torch.float32
                ),
            )
        ]
    )
    same.initialise(1)
    return dict(to_hf(((n, p.detach()) for n, p in same.named_parameters()), gpt_config))


def plain_step(case: Workload, model: nn.Module, logits_of: Callable[[Any], Tensor]) -> Step:
    """Build a step with cross_entropy of full logits and fused AdamW; bf16 is autocast."""
    model.to(case.device)
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in model.parameters() if p.dim() > 1],
            "weight_decay": OPTIMIZER.weight_decay,
        },
        {"params": [p for p in model.parameters() if p.dim() < 2]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER.lr, weight_decay=0.0, fused=True)
    batches, number = case.batches(), 0
    forward: Any = torch.compile(model) if case.compiled else model

    def step() -> float:
        nonlocal number
        number += 1
        ids, targets = batches[number % BATCHES]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(case.device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            logits = logits_of(forward(ids))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
