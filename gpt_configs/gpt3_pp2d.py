"""GPT-3 on 96 GPUs: 24 pipeline stages x a 2 x 2 grid."""

import torch
from colossalai.amp import AMP_TYPE
from titans.model.gpt import gpt3
from torch.optim import Adam

BATCH_SIZE = 2 * 48
SEQ_LEN = 2048
NUM_EPOCHS = 60
NUM_MICRO_BATCHES = 48
PIPELINE = 24
TENSOR_PARALLEL = 4
MODE = "2d"

fp16 = dict(mode=AMP_TYPE.NAIVE)
parallel = dict(pipeline=PIPELINE, tensor=dict(mode=MODE, size=TENSOR_PARALLEL))
optimizer = dict(type=Adam, lr=0.00015, weight_decay=1e-2)
model = dict(type=gpt3, checkpoint=True, dtype=torch.half)
