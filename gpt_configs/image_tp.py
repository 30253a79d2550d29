"""An image GPT on CIFAR-10, 400 images a step: 8 tensor-parallel ranks (TENSOR_PARALLEL=2 for 2).

SEQ_LEN=1023 is odd, so the samples of a micro-batch are a multiple of the ranks: 400 / 5 = 80.
"""

from gpt_configs.image_dp import *

GLOBAL_BATCH_SIZE = 400
NUM_MICRO_BATCHES = 5
TENSOR_PARALLEL = 8
MODE = "1d"
