"""One rank, which begins with the weights of the other run. Documents, epochs, dropout, momentum."""

BATCH_SIZE = 4
SEQ_LEN = 16
NUM_EPOCHS = 2

model = dict(
    n_layer=2,
    n_head=2,
    n_embd=8,
    vocab_size=47,
    embd_pdrop=0.1,
    resid_pdrop=0.1,
    attn_pdrop=0.1,
)
data = dict(path="harbour.jsonl", key="line", tokenizer="char", validation=0.2)
optimizer = dict(type="sgd", lr=0.3, momentum=0.9)
lr_scheduler = dict(type="linear", by="epoch")
gradient_accumulation = 2
loss_spike = dict(factor=2.0, window=5)
eval = dict(every=3)
checkpoint = dict(every=3, keep=1)
log = dict(tensorboard=False)
