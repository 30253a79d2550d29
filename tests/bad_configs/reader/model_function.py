from titans.model.gpt import GPT
import torch.nn as nn


def size():
    return 8


def gpt3_350M(**kw):
    return GPT(dim=1024, depth=24, num_heads=16, **kw)


class Net(nn.Module):
    pass


model = dict(type=gpt3_350M, checkpoint=True)
if model:
    model['type'] = Net()
