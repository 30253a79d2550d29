"""GPT-2 small on 8 GPUs: tensors sharded in three dimensions."""

from colossalai.amp import AMP_TYPE
from titans.model.gpt import gpt2_small
from torch.optim import Adam

BATCH_SIZE = 1
SEQ_LEN = 1024
NUM_EPOCHS = 60
TENSOR_PARALLEL = 8
MODE = "3d"

fp16 = dict(mode=AMP_TYPE.NAIVE)
parallel = dict(tensor=dict(mode=MODE, size=TENSOR_PARALLEL))
optimizer = dict(type=Adam, lr=0.00015, weight_decay=1e-2)
model = dict(type=gpt2_small, checkpoint=True)
