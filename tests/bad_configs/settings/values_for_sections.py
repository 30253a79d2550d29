from torch.optim import Adam

BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = 'gpt2-xl'
optimizer = Adam
lr_scheduler = 'cosine'
data = 'corpus/*.txt'
zero = 3
eval = 100
log = 'runs/a'
checkpoint = True
loss_scale = 1024.0
