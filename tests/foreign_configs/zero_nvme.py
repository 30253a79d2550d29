from model_zoo.gpt.gpt import gpt2_xl
from torch.optim import Adam
from deepspeed.ops.adam import DeepSpeedCPUAdam


BATCH_SIZE = 2
NUM_EPOCHS = 5
SEQ_LEN = 1024

zero = dict(
    level=3,
    overlap_comm=True,
    dynamic_loss_scale=True,
    clip_grad=0.5,
    offload_param_config=dict(
        device='nvme',
        nvme_path='/mnt/nvme0/offload',
        pin_memory=True,
        max_in_cpu=5e8,
        buffer_size=2e8,
        buffer_count=3,
    ),
    offload_optimizer_config=dict(
        device='nvme',
        nvme_path='/mnt/nvme0/offload',
        fast_init=True,
        pipeline=True,
        buffer_count=2,
    ),
    aio_config=dict(block_size=2 * 1024**2, queue_depth=16, thread_count=2,
                    single_submit=True, overlap_events=False)
)

optimizer = dict(type=DeepSpeedCPUAdam, lr=1e-4)
model = dict(type=gpt2_xl, checkpoint=True)
