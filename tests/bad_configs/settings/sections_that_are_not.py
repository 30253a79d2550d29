BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = 'gpt2_small'
optimizer = 3
parallel = 4
zero = dict(model_config=2)
