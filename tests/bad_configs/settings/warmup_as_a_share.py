BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 1000
model = dict(n_layer=4, n_head=4, n_embd=64)
lr_scheduler = dict(warmup=0.05)
