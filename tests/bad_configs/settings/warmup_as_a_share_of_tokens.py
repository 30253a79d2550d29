BATCH_SIZE = 8
SEQ_LEN = 128
NUM_EPOCHS = 3
model = dict(n_layer=4, n_head=4, n_embd=64)
lr_scheduler = dict(type='cosine_clamped', warmup=0.1, by='token', total=1e9)
