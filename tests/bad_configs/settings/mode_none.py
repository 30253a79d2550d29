from torch.optim import Adam

BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
parallel = dict(pipeline=1, tensor=dict(size=4, mode=None))
optimizer = dict(type=Adam)
