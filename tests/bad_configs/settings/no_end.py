BATCH_SIZE = 8
SEQ_LEN = 128
model = dict(n_layer=4, n_head=4, n_embd=64)
