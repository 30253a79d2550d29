TENSOR_PARALLEL = 8
MODE = '2.5d'
DEPTH = 3
BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
