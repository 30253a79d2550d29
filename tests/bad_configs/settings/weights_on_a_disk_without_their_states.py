BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
zero = dict(
    stage=3,
    offload='cpu',
    offload_params='nvme',
    nvme_path='.',
    nvme_buffer=1000,
    nvme_store='mmap',
)
