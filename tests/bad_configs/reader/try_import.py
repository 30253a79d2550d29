try:
    from torch.optim import AdamW
except ImportError:
    AdamW = None
optimizer = dict(type=AdamW)
