from torch.optim import Adam

BATCH_SIZE = 8
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(n_layer=4, n_head=4, n_embd=64)
optimizer = dict(type=Adam, amsgrad=True, nvme_offload_fraction=0.5)
fp16 = dict(mode=None, enabled=False)
model['bias'] = False
model['mlp_ratio'] = '4'
lr_scheduler = dict(type='cosine', eta_min=1e-5)
