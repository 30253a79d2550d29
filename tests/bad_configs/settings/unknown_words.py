BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
MODE = '4d'
precision = 'bfloat'
schedule = 'zb'
backend = 'mpi'
optimizer = dict(type='adamw2')
lr_scheduler = dict(type='cosin', by='steps')
data = dict(type='tex', tokenizer='gpt3')
zero = dict(offload='disk')
