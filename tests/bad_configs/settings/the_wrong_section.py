BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64, lr=3e-4, TENSOR_PARALLEL=2)
optimizer = dict(warmup=10, schedule='gpipe')
data = dict(vocab_size=65, every=3)
lr = 3e-4
Weigth_Decay = 0.1
