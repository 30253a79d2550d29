BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
HIDDEN_SIZE = 1024
model = dict(type="gpt2_small")
