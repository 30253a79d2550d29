import torch

if torch.cuda.is_available():
    BATCH_SIZE = 8
else:
    BATCH_SIZE = 1
SEQ_LEN = BATCH_SIZE * 128
