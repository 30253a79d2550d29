PIPELINE_PARALLEL = 2
DATA_PARALLEL = 4
TENSOR_PARALLEL_SIZE = 2
LEARNING_RATE = 1e-3
WORLD_SIZE = 8
BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
parallel = dict(data=2)
batch_size = 4
