"""A character GPT, data parallel: every rank has a copy of the model.

The text is `DATA=my.txt`, by default the one that comes with Python.

minGPT's epochs have a sample at every character, so they read each one SEQ_LEN times. 10 of those
epochs are 10 * SEQ_LEN epochs here.
"""

BATCH_SIZE = 216  # samples of a rank
SEQ_LEN = 128
NUM_EPOCHS = 10 * SEQ_LEN

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
eval = dict(epochs=SEQ_LEN)
checkpoint = dict(epochs=2 * SEQ_LEN, auto_resume=True)
