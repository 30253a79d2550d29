"""Samples of 8,192 tokens over four GPUs, by Colossal-AI's sequence parallelism."""
from colossalai.amp import AMP_TYPE
from titans.model.gpt import gpt2_small
from torch.optim import AdamW

BATCH_SIZE = 2
SEQ_LEN = 8192
NUM_EPOCHS = 2
NUM_MICRO_BATCHES = 2
SEQUENCE_SIZE = 4
HIDDEN_SIZE = 768
TENSOR_SHAPE = (SEQ_LEN // SEQUENCE_SIZE, BATCH_SIZE // NUM_MICRO_BATCHES, HIDDEN_SIZE)

fp16 = dict(mode=AMP_TYPE.NAIVE, verbose=True)
parallel = dict(pipeline=2, tensor=dict(size=SEQUENCE_SIZE, mode='sequence'))
gradient_handler = [dict(type='SequenceParallelGradientHandler')]
optimizer = dict(type=AdamW, lr=0.0001, weight_decay=1e-2)
model = dict(type=gpt2_small, max_position_embeddings=SEQ_LEN)
