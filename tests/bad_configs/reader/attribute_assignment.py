import torch

torch.half = 3
