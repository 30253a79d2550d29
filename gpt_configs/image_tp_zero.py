"""An image GPT on CIFAR-10, 400 images a step: 4 tensor-parallel x 2 data-parallel ranks, ZeRO 1.

ZeRO shards over data-parallel ranks. On 4 ranks: TENSOR_PARALLEL=2. On 2: TENSOR_PARALLEL=1
MODE=None.
"""

from gpt_configs.image_tp import *

TENSOR_PARALLEL = 4
zero = dict(stage=1)
