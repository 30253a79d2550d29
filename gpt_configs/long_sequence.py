"""GPT-2 small on samples of 131,072 tokens: each sample on 8 GPUs, which have all weights."""

BATCH_SIZE = 1
SEQ_LEN = 131072
MAX_STEPS = 1000
TENSOR_PARALLEL = 8
MODE = "sequence"

precision = "bf16"
model = dict(type="gpt2_small", block_size=SEQ_LEN, checkpoint=True)
optimizer = dict(type="adamw", lr=1.5e-4, weight_decay=1e-2)
zero = dict(stage=1, depth=True)
data = dict(type="synthetic")
