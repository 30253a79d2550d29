BATCH_SIZE = '4'
SEQ_LEN = True
NUM_EPOCHS = 4.0
NUM_MICRO_BATCHES = None
TENSOR_PARALLEL = [2]
seed = 1.5
compile = 1
model = dict(n_layer=4, n_head=4, n_embd=64, checkpoint='yes', embd_pdrop='0.1')
optimizer = dict(lr='1e-3', betas=(0.9,), weight_decay=False)
log = dict(dir=7)
