"""A character GPT of 20 billion parameters: ZeRO-3, offloaded to the host.

docs/billions.md has its memory on 1 and on 8 GPUs.
"""

BATCH_SIZE = 1
SEQ_LEN = 128
NUM_EPOCHS = 10

model = dict(
    n_layer=25,
    n_head=16,
    n_embd=8192,
    vocab_size="data",
    activation="gelu",
    tie_embeddings=False,
    init_positions="zero",
    embd_pdrop=0.1,
    resid_pdrop=0.1,
    attn_pdrop=0.1,
    checkpoint=True,
)
data = dict(tokenizer="char")
optimizer = dict(type="adamw", lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, decay="weights")
lr_scheduler = dict(
    type="cosine_clamped", by="epoch", total=2, warmup=10_240, warmup_by="token", floor=0.1
)
clip_grad_norm = 1.0
precision = "fp16"
strategy = "deepspeed_stage_3_offload"
