"""An image GPT on CIFAR-10, 400 images a step: 8 tensor-parallel ranks, computing in fp16."""

from gpt_configs.image_tp import *

precision = "fp16"
