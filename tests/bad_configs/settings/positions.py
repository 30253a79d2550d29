BATCH_SIZE = 8
SEQ_LEN = 2048
MAX_STEPS = 10
model = dict(type="gpt2_small")
