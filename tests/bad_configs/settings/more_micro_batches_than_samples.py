BATCH_SIZE = 2
NUM_MICRO_BATCHES = 4
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
