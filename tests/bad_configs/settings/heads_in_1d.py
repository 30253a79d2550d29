TENSOR_PARALLEL = 8
MODE = '1d'
BATCH_SIZE = 8
SEQ_LEN = 1024
NUM_EPOCHS = 1
model = dict(type='gpt2_small')
