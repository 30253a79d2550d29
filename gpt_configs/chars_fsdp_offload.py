"""A character GPT, fully sharded; weights and optimizer states are kept on the host.

The text is `DATA=my.txt`, by default the one that comes with Python.
"""

BATCH_SIZE = 216  # samples of a rank
SEQ_LEN = 128
NUM_EPOCHS = 10

model = dict(
    n_layer=8,
    n_head=8,
    n_embd=512,
    vocab_size="data",
    activation="gelu",
    tie_embeddings=False,
    init_positions="zero",
    embd_pdrop=0.1,
    resid_pdrop=0.1,
    attn_pdrop=0.1,
)
data = dict(tokenizer="char", truncate=0.05, validation=0.1)
optimizer = dict(type="adamw", lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, decay="linears")
clip_grad_norm = 1.0
precision = "fp16"
zero = dict(stage=3, offload="cpu", offload_params="cpu")
eval = dict(epochs=1)
checkpoint = dict(epochs=2, auto_resume=True)
