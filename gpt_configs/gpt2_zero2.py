"""GPT-2 small with ZeRO 2: optimizer states on the host. 1 GPU or more; computes in fp16."""

from titans.model.gpt import gpt2_small
from torch.optim import Adam

BATCH_SIZE = 1
SEQ_LEN = 1024
NUM_EPOCHS = 60

zero = dict(level=2, cpu_offload=True)
optimizer = dict(type=Adam, lr=0.00015, weight_decay=1e-2)
model = dict(type=gpt2_small, checkpoint=True)
