"""GPT-3 with ZeRO 3 over 64 GPUs; computes in fp16."""

from colossalai.nn.optimizer import HybridAdam
from colossalai.zero.shard_utils import TensorShardStrategy
from titans.model.gpt import gpt3

BATCH_SIZE = 3
SEQ_LEN = 2048
NUM_EPOCHS = 60

zero = dict(
    model_config=dict(tensor_placement_policy="cuda", shard_strategy=TensorShardStrategy()),
    optimizer_config=dict(initial_scale=2**16),
)
optimizer = dict(type=HybridAdam, lr=0.00015, weight_decay=1e-2)
model = dict(type=gpt3, checkpoint=True)
