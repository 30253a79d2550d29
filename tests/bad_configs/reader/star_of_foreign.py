from torch.optim import *

optimizer = dict(type=Adam)
