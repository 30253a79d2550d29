TENSOR_PARALLEL = 9
MODE = '2d'
BATCH_SIZE = 9
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64, head_dim=16, n_inner=200)
