from model import GPT2_small_pipeline_hybrid

import colossalai.nn.optimizer as optim
from colossalai.zero.shard_utils import TensorShardStrategy

BATCH_SIZE = 16
NUM_EPOCHS = 1
SEQ_LEN = 128
NUM_MICRO_BATCHES = BATCH_SIZE // 2
HIDDEN_SIZE = 768
TENSOR_SHAPE = (BATCH_SIZE // NUM_MICRO_BATCHES, SEQ_LEN, HIDDEN_SIZE)
LOG_PATH = f"./logs/gpt2_{BATCH_SIZE}x{SEQ_LEN}_{2e-05:.0e}/"

# leave this out for plain data parallelism
zero = {
    "model_config": dict(tensor_placement_policy="cuda", shard_strategy=TensorShardStrategy()),
    "optimizer_config": {"initial_scale": 2**6},
}

optimizer = dict(type=optim.HybridAdam, lr=0.00002, weight_decay=0.0)

model = dict(type=GPT2_small_pipeline_hybrid, checkpoint=False, num_chunks=2)

parallel = dict(
    pipeline=2,
    tensor=dict(size=2, mode="1d"),  # this model knows 1d and None
)
