TENSOR_PARALLEL = 8
MODE = '3d'
BATCH_SIZE = 4
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=2, n_embd=62, head_dim=31, n_inner=250)
