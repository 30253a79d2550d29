"""Languini's compute class of 24 hours of an RTX 3090: GPT small on books, 4,787,942,400 tokens.

MAX_STEPS is from `cuboid steps --hours 24 --tokens-per-second 55416 --batch 256 --seq 512`.
"""

GLOBAL_BATCH_SIZE = 256
BATCH_SIZE = 32  # of a rank and accumulation round
SEQ_LEN = 512
MAX_STEPS = 36529

model = dict(type="languini-small")
data = dict(type="lanes", path="data/books/books_16384", tokenizer="sentencepiece")
optimizer = dict(type="adam", lr=6e-4, betas=(0.9, 0.95))
lr_scheduler = dict(type="cosine_from_start", warmup=200, total=MAX_STEPS, floor=0.01)
precision = "fp16"
loss_scale = dict(growth_interval=2000)
eval = dict(every=1000, split="test", tokens=4_096_000)
checkpoint = dict(every=5000)
log = dict(tokens_per_second=55416)
seed = 0
