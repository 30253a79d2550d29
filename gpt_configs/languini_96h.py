"""Languini's compute class of 96 hours of an RTX 3090: GPT medium on books, 5,743,180,800 tokens.

MAX_STEPS is from `cuboid steps --hours 96 --tokens-per-second 16618 --batch 256 --seq 512`.
"""

GLOBAL_BATCH_SIZE = 256
BATCH_SIZE = 8  # of a rank and accumulation round
SEQ_LEN = 512
MAX_STEPS = 43817

model = dict(type="languini-medium")
data = dict(type="lanes", path="data/books/books_16384", tokenizer="sentencepiece")
optimizer = dict(type="adam", lr=6e-4, betas=(0.9, 0.95))
lr_scheduler = dict(type="cosine_from_start", warmup=200, total=MAX_STEPS, floor=0.01)
precision = "fp16"
loss_scale = dict(growth_interval=2000)
eval = dict(every=1000, split="test", tokens=4_096_000)
checkpoint = dict(every=5000)
log = dict(tokens_per_second=16618)
seed = 0
