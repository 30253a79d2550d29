from colossalai.amp import AMP_TYPE

fp16 = dict(mode=AMP_TYPE.TORCH)
precision = 'bf16'
BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
