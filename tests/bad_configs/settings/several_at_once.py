NUM_MICRO_BATCHES = 4
PIPELINE = 1
SEQ_LEN = 128
BATCH_SIZE = 10
NUM_MICROBATCHES = 5
MODE = '2d'
TENSOR_PARALLEL = 6
MAX_STEPS = 10
optimizer = dict(lr='fast')
model = dict(n_layer=4, n_head=4, n_embd=64, block_size=64)
