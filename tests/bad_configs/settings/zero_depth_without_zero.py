BATCH_SIZE = 4
SEQ_LEN = 8
MAX_STEPS = 1
MODE = "2.5d"
TENSOR_PARALLEL = DEPTH = 2
model = dict(n_layer=2, n_head=4, n_embd=32, vocab_size=64)
data = dict(type="synthetic")
zero = dict(depth=True)
