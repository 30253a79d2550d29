NUM_MICROBATCHES = 4
BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
model['n_layers'] = 4
optimizer = dict(learning_rate=1e-3)
SEQLEN = 12
QwErTy = 1
