"""GPT-3 on 128 GPUs: 32 pipeline stages x 4 tensor-parallel ranks."""

import torch
from colossalai.amp import AMP_TYPE
from titans.model.gpt import gpt3
from torch.optim import Adam

BATCH_SIZE = 192
SEQ_LEN = 2048
NUM_EPOCHS = 60
NUM_MICRO_BATCHES = 192
PIPELINE = 32
TENSOR_PARALLEL = 4
MODE = "1d"

fp16 = dict(mode=AMP_TYPE.NAIVE)
parallel = dict(pipeline=PIPELINE, tensor=dict(mode=MODE, size=TENSOR_PARALLEL))
optimizer = dict(type=Adam, lr=0.00015, weight_decay=1e-2)
model = dict(type=gpt3, checkpoint=True, dtype=torch.half)
