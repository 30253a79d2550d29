BATCH_SIZE = 4
SEQ_LEN = 8
MAX_STEPS = 1
MODE = "2d"
TENSOR_PARALLEL = 4
model = dict(n_layer=2, n_head=4, n_embd=32, vocab_size=64)
data = dict(type="synthetic")
zero = dict(stage=3, depth=True)
