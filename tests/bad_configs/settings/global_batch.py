GLOBAL_BATCH_SIZE = 60
BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
