"""A checkpoint of Languini's GPT (``checkpoints/model.pt``), whose tokenizer is a SentencePiece
model in another file."""

from __future__ import annotations

from engine.inout.import_model import Importer
from engine.inout.trainer_checkpoint import TrainerFormat
from models.trainer_state_dict import StateDictNames

_LAYER, _END = r"layers\.(\d+)", r"(weight|bias)"

FORMAT = TrainerFormat(
    names=StateDictNames(
        patterns=(
            (r"input_embedding\.weight", "wte.weight"),
            (r"position_embedding\.weight", "wpe.weight"),
            (rf"{_LAYER}\.ln([12])\.{_END}", r"h.\1.ln_\2.\3"),
            (rf"{_LAYER}\.attn\.linear_O\.{_END}", r"h.\1.attn.c_proj.\2"),
            (rf"{_LAYER}\.mlp\.(c_fc|c_proj)\.{_END}", r"h.\1.mlp.\2.\3"),
            (rf"ln_f\.{_END}", r"ln_f.\1"),
            (r"linear\.weight", "lm_head.weight"),
        ),
        query_key_value=tuple(
            (rf"{_LAYER}\.attn\.linear_{part}\.{_END}", r"h.\1.attn.c_attn.\2") for part in "QKV"
        ),
        unused=r"layers\.\d+\.attn\.mask",
    ),
    architecture={"activation": "gelu_tanh", "init_residual": "mlp", "scale_embedding": True},
)

IMPORT = Importer(open_model=FORMAT.open_model)
