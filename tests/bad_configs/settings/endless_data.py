BATCH_SIZE = 8
SEQ_LEN = 128
NUM_EPOCHS = 3
model = dict(n_layer=4, n_head=4, n_embd=64)
data = dict(type='synthetic')
lr_scheduler = dict(by='epoch')
eval = dict(epochs=1.0)
checkpoint = dict(epochs=0.5)
