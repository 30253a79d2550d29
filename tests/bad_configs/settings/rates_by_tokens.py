BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 100
model = dict(n_layer=4, n_head=4, n_embd=64)
data = dict(type='synthetic')
lr_scheduler = dict(
    type='cosine',
    by='token',
    warmup=0.1,
    total=0.9,
    warmup_by='epoch',
)
