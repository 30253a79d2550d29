PIPELINE = 2
NUM_MICRO_BATCHES = 8
BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
model['num_chunks'] = 2
schedule = '1f1b'
