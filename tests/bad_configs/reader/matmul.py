import torch

x = torch @ torch
