"""Named sizes of published GPTs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

GPT2_VOCABULARY = 50_257


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The settings of a named model; a field that is None keeps the default of its setting.

    ``block_size`` None: SEQ_LEN positions. ``published``: the preset that other projects mean by
    this name, where it differs.
    """

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int | None = 1024
    vocab_size: int = GPT2_VOCABULARY
    head_dim: int | None = None
    n_inner: int | None = None
    tie_embeddings: bool | None = None
    init_residual: str | None = None
    scale_embedding: bool | None = None
    published: str | None = None

    @property
    def settings(self) -> dict[str, int | str | bool]:
        """The settings of the section ``model`` that the preset determines."""
        values = asdict(self)
        del values["published"]
        return {name: value for name, value in values.items() if value is not None}


def _titans(n_layer: int, n_head: int, n_embd: int, published: str | None = None) -> Preset:
    return Preset(n_layer=n_layer, n_head=n_head, n_embd=n_embd, published=published)


def _languini(n_layer: int, n_head: int, n_embd: int, head_dim: int) -> Preset:
    return Preset(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        head_dim=head_dim,
        n_inner=4 * n_embd,
        block_size=None,
        vocab_size=16_384,
        tie_embeddings=False,
        init_residual="mlp",
        scale_embedding=True,
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # GPT-2 (Radford et al. 2019), table 2
        "gpt2_small": Preset(n_layer=12, n_head=12, n_embd=768),
        "gpt2_medium": Preset(n_layer=24, n_head=16, n_embd=1024),
        "gpt2_large": Preset(n_layer=36, n_head=20, n_embd=1280),
        "gpt2_xl": Preset(n_layer=48, n_head=25, n_embd=1600),
        # GPT-3 (Brown et al. 2020), table 2.1
        "gpt3": Preset(n_layer=96, n_head=96, n_embd=12288, block_size=2048),
        # Colossal-AI's titans (titans.model.gpt); the first four differ from the published ones
        "titans_gpt2_medium": _titans(24, 8, 1024, "gpt2_medium"),
        "titans_gpt2_large": _titans(36, 12, 1536, "gpt2_large"),
        "titans_gpt2_xl": _titans(48, 16, 1600, "gpt2_xl"),
        "gpt2_exlarge": _titans(48, 32, 1600, "gpt2_xl"),
        "gpt2_2B": _titans(40, 16, 2048),
        "gpt2_3B": _titans(48, 16, 2304),
        "gpt2_4B": _titans(64, 16, 2304),
        "gpt2_6B": _titans(30, 16, 4096),
        "gpt2_8B": _titans(72, 24, 3072),
        "gpt2_12B": _titans(60, 16, 4096),
        "gpt2_15B": _titans(78, 16, 4096),
        "gpt2_18B": _titans(90, 16, 4096),
        "gpt2_20B": _titans(25, 16, 8192),
        "gpt2_24B": _titans(30, 16, 8192),
        "gpt2_28B": _titans(35, 16, 8192),
        "gpt2_32B": _titans(40, 16, 8192),
        "gpt2_36B": _titans(45, 16, 8192),
        "gpt2_40B": _titans(50, 16, 8192),
        # minGPT's names (mingpt/model.py); where block_size is None, minGPT's user chooses it
        "openai-gpt": Preset(n_layer=12, n_head=12, n_embd=768, block_size=512),
        "gpt2": Preset(n_layer=12, n_head=12, n_embd=768),
        "gpt2-medium": Preset(n_layer=24, n_head=16, n_embd=1024),
        "gpt2-large": Preset(n_layer=36, n_head=20, n_embd=1280),
        "gpt2-xl": Preset(n_layer=48, n_head=25, n_embd=1600),
        "gopher-44m": Preset(n_layer=8, n_head=16, n_embd=512, block_size=None),
        "gpt-mini": Preset(n_layer=6, n_head=6, n_embd=192, block_size=None),
        "gpt-micro": Preset(n_layer=4, n_head=4, n_embd=128, block_size=None),
        "gpt-nano": Preset(n_layer=3, n_head=3, n_embd=48, block_size=None),
        # Languini Kitchen's GPT (languini/projects/gpt/configs.py)
        "languini-mini": _languini(4, 8, 512, head_dim=32),
        "languini-tiny": _languini(4, 12, 768, head_dim=64),
        "languini-small": _languini(12, 12, 768, head_dim=64),
        "languini-medium": _languini(24, 16, 1024, head_dim=64),
        "languini-large": _languini(24, 16, 1536, head_dim=96),
        "languini-xl": _languini(24, 24, 2048, head_dim=128),
    }
)


def presets_called(name: str) -> list[str]:
    """Return the presets that ``name`` may mean; it may lack the family: 'small' for
    'languini-small'."""
    return [preset for preset in PRESETS if name == re.split("[-_]", preset)[-1] or name == preset]
