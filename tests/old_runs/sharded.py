"""Four ranks: tensor parallelism and ZeRO 1, fp16 whose first step overflows."""

from colossalai.amp import AMP_TYPE

BATCH_SIZE = 4
SEQ_LEN = 16
MAX_STEPS = 8
TENSOR_PARALLEL = 2
MODE = "1d"

parallel = dict(tensor=dict(mode=MODE, size=TENSOR_PARALLEL))
model = dict(n_layer=2, n_head=2, n_embd=8, vocab_size=47)
data = dict(path="harbour.txt", tokenizer="char")
optimizer = dict(type="adamw", lr=0.01)
lr_scheduler = dict(type="cosine", warmup=2, floor=0.1)
clip_grad_norm = 1.0
zero = dict(stage=1)
fp16 = dict(mode=AMP_TYPE.NAIVE, initial_scale=2.0**32, backoff_factor=2.0**-22, growth_interval=3)
eval = dict(every=4)
checkpoint = dict(every=4, keep=2)
