"""A state dict of minGPT's first block, which three trainers share: the image GPTs of minGPT's
notebook and of TorchShard (``cifar10_model.pt``, with the colours in ``c.pt``), and minGPT under
Lightning, whose checkpoint also stores the number of heads.

The snapshot of minGPT under DDP (``gpt_snapshot.pt``) is rejected: its attention adds the causal
mask to the scores as numbers, so its weights belong to a model that is not causal.
"""

from __future__ import annotations

from engine.inout.import_model import Importer
from engine.inout.trainer_checkpoint import TrainerFormat
from models.trainer_state_dict import StateDictNames

_BLOCK, _END = r"blocks\.(\d+)", r"(weight|bias)"

FORMAT = TrainerFormat(
    names=StateDictNames(
        patterns=(
            (r"tok_emb\.weight", "wte.weight"),
            (r"pos_emb", "wpe.weight"),
            (rf"{_BLOCK}\.ln([12])\.{_END}", r"h.\1.ln_\2.\3"),
            (rf"{_BLOCK}\.attn\.proj\.{_END}", r"h.\1.attn.c_proj.\2"),
            (rf"{_BLOCK}\.mlp\.0\.{_END}", r"h.\1.mlp.c_fc.\2"),
            # An activation module is between the two layers in one of them
            (rf"{_BLOCK}\.mlp\.[23]\.{_END}", r"h.\1.mlp.c_proj.\2"),
            (rf"ln_f\.{_END}", r"ln_f.\1"),
            (r"head\.weight", "lm_head.weight"),
        ),
        query_key_value=tuple(
            (rf"{_BLOCK}\.attn\.{part}\.{_END}", r"h.\1.attn.c_attn.\2")
            for part in ("query", "key", "value")
        ),
        key_query_value=(rf"{_BLOCK}\.attn\.kqv\.{_END}", r"h.\1.attn.c_attn.\2"),
        unused=r"blocks\.\d+\.attn\.mask",
    ),
    architecture={"activation": "gelu", "init_residual": "none", "init_positions": "zero"},
    rejected={
        r".*\.attn\.in_proj_weight": "its attention is not causal: torch adds its float mask to "
        "the scores, so every position sees the later ones; train again from the text"
    },
)

IMPORT = Importer(open_model=FORMAT.open_model)
