"""GPT-2 small on samples of 131,072 tokens: each sample on 4 GPUs, sharded in two dimensions."""

BATCH_SIZE = 1
SEQ_LEN = 131072
MAX_STEPS = 1000
TENSOR_PARALLEL = 4
MODE = "2d"

precision = "bf16"
model = dict(type="gpt2_small", block_size=SEQ_LEN, checkpoint=True)
optimizer = dict(type="adamw", lr=1.5e-4, weight_decay=1e-2)
data = dict(type="synthetic")
