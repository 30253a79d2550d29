from titans.model.gpt import gpt3_350M

BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(type=gpt3_350M)
