"""GPT-2 small on 8 GPUs: 2 stages x 2 tensor-parallel ranks, ZeRO 3 over 2 data-parallel ones.

Computes in fp16.
"""

from colossalai.nn.optimizer import HybridAdam
from colossalai.zero.shard_utils import TensorShardStrategy
from titans.model.gpt import gpt2_small

BATCH_SIZE = 8
SEQ_LEN = 1024
NUM_EPOCHS = 60
NUM_MICRO_BATCHES = 4
PIPELINE = 2
TENSOR_PARALLEL = 2
MODE = "1d"

parallel = dict(pipeline=PIPELINE, tensor=dict(mode=MODE, size=TENSOR_PARALLEL))
zero = dict(
    model_config=dict(tensor_placement_policy="cpu", shard_strategy=TensorShardStrategy()),
    optimizer_config=dict(initial_scale=2**16),
)
optimizer = dict(type=HybridAdam, lr=0.00015, weight_decay=1e-2)
model = dict(type=gpt2_small, checkpoint=True)
