PIPELINE = 2
NUM_MICRO_BATCHES = 3
BATCH_SIZE = 6
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64, num_chunks=2)
schedule = 'interleaved'
