BATCH_SIZE = 8
SEQ_LEN = 128
NUM_EPOCHS = 60
model = dict(n_layer=4, n_head=4, n_embd=64)
lr_scheduler = dict(type='cosine', warmup_steps=0.03)
