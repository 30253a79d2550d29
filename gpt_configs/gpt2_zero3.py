"""GPT-2 small with ZeRO 3, offloaded to the host. 1 GPU or more; computes in fp16."""

from colossalai.nn.optimizer import HybridAdam
from colossalai.zero.shard_utils import TensorShardStrategy
from titans.model.gpt import gpt2_small

BATCH_SIZE = 1
SEQ_LEN = 1024
NUM_EPOCHS = 60

zero = dict(
    model_config=dict(tensor_placement_policy="cpu", shard_strategy=TensorShardStrategy()),
    optimizer_config=dict(initial_scale=2**16),
)
optimizer = dict(type=HybridAdam, lr=0.00015, weight_decay=1e-2)
model = dict(type=gpt2_small, checkpoint=True)
