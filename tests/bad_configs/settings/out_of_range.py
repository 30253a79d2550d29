BATCH_SIZE = 0
SEQ_LEN = -1024
MAX_STEPS = 2**40
TENSOR_PARALLEL = 10**6
seed = -1
timeout = 0
clip_grad_norm = -1.0
model = dict(n_layer=4, n_head=4, n_embd=64, resid_pdrop=1.0)
optimizer = dict(lr=0, betas=(0.9, 1.0), eps=-1e-8)
zero = dict(stage=4)
eval = dict(every=-1)
