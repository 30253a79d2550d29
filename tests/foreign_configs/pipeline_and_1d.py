from titans.loss.lm_loss import GPTLMLoss
from titans.loss.vocab_cross_entropy import vocab_parallel_cross_entropy
from titans.model.gpt import gpt2_medium
from torch.optim import Adam
from colossalai.amp import AMP_TYPE
import torch

BATCH_SIZE = 16
NUM_EPOCHS = 10
SEQ_LEN = 512
NUM_MICRO_BATCHES = 8
HIDDEN_SIZE = 1024
PIPELINE = 4
TENSOR_PARALLEL = 2
MODE  = '1d'
TENSOR_SHAPE = (BATCH_SIZE // NUM_MICRO_BATCHES, SEQ_LEN, HIDDEN_SIZE)

parallel = dict(pipeline=PIPELINE, tensor=dict(size=TENSOR_PARALLEL, mode=MODE))
fp16 = dict(mode=AMP_TYPE.NAIVE)
model = dict(type=gpt2_medium, checkpoint=True, dtype=torch.half)
optimizer = dict(type=Adam, lr=2e-4, weight_decay=0.05)
loss_fn = dict(type=vocab_parallel_cross_entropy)
