"""A character GPT on the text that comes with Python. About two minutes on two CPU cores.

`./run.sh` alone trains it, with a layout that suits the machine instead of the one below.
"""

BATCH_SIZE = 32
SEQ_LEN = 64
MAX_STEPS = 450
TENSOR_PARALLEL = 4
MODE = "2d"

model = dict(n_layer=4, n_head=4, n_embd=128, vocab_size=128)
data = dict(tokenizer="char")
optimizer = dict(type="adamw", lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1)
lr_scheduler = dict(type="cosine", warmup=40, floor=0.1)
clip_grad_norm = 1.0
eval = dict(every=150, batches=16)
