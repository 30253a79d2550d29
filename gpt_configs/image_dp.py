"""An image GPT on CIFAR-10, 64 images a step on any number of data-parallel ranks up to 64.

Path: the folder of CIFAR-10's binary version. 8 ranks take 8 images each, one rank all 64.
"""

GLOBAL_BATCH_SIZE = 64
SEQ_LEN = 1023  # 32 x 32 pixels; the first one is never predicted
NUM_EPOCHS = 20

model = dict(
    n_layer=12,
    n_head=8,
    n_embd=256,
    vocab_size=512,
    tie_embeddings=False,
    activation="gelu",
    init_residual="none",
    init_positions="zero",
)
data = dict(type="images", path="cifar-10-batches-bin")
optimizer = dict(type="adamw", lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
lr_scheduler = dict(type="cosine_clamped", by="epoch", warmup=1, floor=0.1)
clip_grad_norm = 1.0
eval = dict(split="test", epochs=1, samples="all")
checkpoint = dict(epochs=1)
