SEQ_LENGTH = 128
TOKENS = 8 * SEQ_LENGTH
EPOCHS = 3
BATCH = 8
lr_scheduler = dict(total=EPOCHS * BATCH * TOKENS)
model = dict(n_layer=4, n_head=4, n_embd=64)
