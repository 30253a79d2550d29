"""An image GPT on scikit-learn's digits, in four grey levels."""

BATCH_SIZE = 32
SEQ_LEN = 63  # 8 x 8 pixels; the first one is never predicted
MAX_STEPS = 3000

# A narrow model learns faster from larger initial weights than GPT-2's 0.02
model = dict(n_layer=3, n_head=4, n_embd=96, vocab_size=4, init_std=0.06)
data = dict(type="images", codes=4, variants=12)
optimizer = dict(type="adamw", lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
lr_scheduler = dict(type="cosine", warmup=50, floor=0.05)
clip_grad_norm = 1.0
eval = dict(every=400, samples="all")
