train_batch_size = 32
train_micro_batch_size_per_gpu = 4
steps_per_print = 10
gradient_clipping = 1.0
bf16 = dict(enabled=True)
zero_optimization = dict(stage=3, offload_optimizer=dict(device='cpu'))
optimizer = dict(type='AdamW', params=dict(lr=3e-4))
scheduler = dict(type='WarmupLR')
zero = dict(stage=3, offload_param=dict(device='cpu'), zero_stage=2)
SEQ_LEN = 128
MAX_STEPS = 10
model = dict(num_hidden_layers=4, num_attention_heads=4, n_embd=64)
