"""A character GPT on the text that comes with Python, on 4 processes. About two minutes on a CPU.

`./run.sh` alone trains it, cut to suit the machine.
"""

BATCH_SIZE = 16
SEQ_LEN = 128
MAX_STEPS = 300
TENSOR_PARALLEL = 4
MODE = "2d"

model = dict(n_layer=4, n_head=4, n_embd=128, vocab_size=128)
data = dict(tokenizer="char")
optimizer = dict(type="adamw", lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
lr_scheduler = dict(type="cosine", warmup=30, floor=0.1)
clip_grad_norm = 1.0
eval = dict(every=100, batches=8)
