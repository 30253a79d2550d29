# café
BATCH_SIZE = 8
