BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
lr_scheduler = dict(type='linear', warmup=100, total=50)
loss_scale = dict(initial=0.5)
precision = 'fp16'
