BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 3
model = dict(n_layer=4, n_head=4, n_embd=64)
data = dict(validation=0.1, validation_path='validation_data.py')
eval = dict(split='test')
