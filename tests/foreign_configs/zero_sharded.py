from model_zoo.gpt import gpt
from colossalai.nn.optimizer import HybridAdam
from colossalai.zero.shard_utils import BucketTensorShardStrategy, TensorShardStrategy

SEQ_LEN = 1024
BATCH_SIZE = 4
NUM_EPOCHS = 30

# parallel = dict(
#     tensor=dict(size=4, mode='2d')
# )

zero = dict(
    model_config=dict(
        shard_strategy=TensorShardStrategy(),
        tensor_placement_policy='auto',
        reuse_fp16_shard=True
    ),
    optimizer_config=dict(gpu_margin_mem_ratio=0.5, initial_scale=2**10)
)

optimizer = dict(type=HybridAdam, lr=1e-4, weight_decay=1e-2)

model = dict(type=gpt.gpt2_8B, checkpoint=True)
clip_grad_norm = 1.0
