"""GPT-2 small on 2 GPUs: a 1 x 1 grid, two deep."""

from colossalai.amp import AMP_TYPE
from titans.model.gpt import gpt2_small
from torch.optim import Adam

BATCH_SIZE = 1
SEQ_LEN = 1024
NUM_EPOCHS = 60
TENSOR_PARALLEL = 2
MODE = "2.5d"
DEPTH = 2

fp16 = dict(mode=AMP_TYPE.NAIVE)
parallel = dict(tensor=dict(mode=MODE, size=TENSOR_PARALLEL, depth=DEPTH))
optimizer = dict(type=Adam, lr=0.00015, weight_decay=1e-2)
model = dict(type=gpt2_small, checkpoint=True)
