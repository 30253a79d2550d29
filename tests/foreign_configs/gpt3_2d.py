import os

import torch
from colossalai.amp import AMP_TYPE
from titans.model.gpt import gpt3
from torch.optim import Adam

MICRO = 24
BATCH_SIZE = 4 * MICRO
NUM_EPOCHS = int(os.environ.get('EPOCHS', 2))
SEQ_LEN = 2048
NUM_MICRO_BATCHES = MICRO
SUMMA = 2
TENSOR_SHAPE = (BATCH_SIZE // NUM_MICRO_BATCHES // SUMMA, SEQ_LEN, 12288 // SUMMA)
CLIP = None
if CLIP is not None:
    clip_grad_norm = CLIP
elif SUMMA in (2, 4) and not BATCH_SIZE % SUMMA:
    clip_grad_norm = 1.0

fp16 = dict(mode=AMP_TYPE.NAIVE)
parallel = dict(pipeline=12, tensor=dict(mode='2d', size=SUMMA**2))
optimizer = dict(type=Adam, lr=0.00006, weight_decay=1e-1)
model = dict(type=gpt3, checkpoint=True, dtype=torch.half)
