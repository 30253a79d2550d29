"""2.5d over eight GPUs, from the time when the models lived in model_zoo."""
from colossalai.amp import AMP_TYPE
from model_zoo.gpt.gpt import GPTLMLoss, gpt2_small as small
from torch.optim import AdamW

BATCH_SIZE = 8
SEQ_LEN = 1024
NUM_EPOCHS = 3
TENSOR_PARALLEL = 8
DEPTH = 2


fp16 = dict(
    mode=AMP_TYPE.TORCH,
)

loss = dict(type=GPTLMLoss)

model = dict(type=small,
             checkpoint=True)

optimizer = dict(type=AdamW, lr=3e-4)

parallel = dict(
    pipeline=1,
    tensor=dict(mode='2.5d', depth=DEPTH, size=TENSOR_PARALLEL),
)
