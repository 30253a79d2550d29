from torch.optim import Adam
from colossalai.amp import AMP_TYPE
import torch

BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
PIPELINE = 4
TENSOR_PARALLEL = 2
MODE = '1d'
fp16 = dict(mode=AMP_TYPE.NAIVE)
precision = 'bf16'
parallel = dict(pipeline=2, tensor=dict(size=4, mode=None))
model = dict(n_layer=4, n_head=4, n_embd=64, num_layers=5, dtype=torch.bfloat16)
zero = dict(level=3, stage=2, clip_grad=2.0)
clip_grad_norm = 1.0
