"""An image GPT on CIFAR-10, 72 images a step: data-parallel, 9 images a rank on 8 ranks."""

from gpt_configs.image_dp import *

GLOBAL_BATCH_SIZE = 72
