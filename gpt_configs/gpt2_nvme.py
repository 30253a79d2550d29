"""GPT-2 small with ZeRO 3, offloaded to an NVMe disk. 1 GPU or more; computes in fp16."""

from titans.model.gpt import gpt2_small
from torch.optim import Adam

BATCH_SIZE = 1
SEQ_LEN = 1024
NUM_EPOCHS = 60
NVME_PATH = "/mnt/nvme"  # folder on the disk; set it by NVME_PATH=... on the command line

zero = dict(
    level=3,
    offload_optimizer_config=dict(device="nvme", nvme_path=NVME_PATH),
    offload_param_config=dict(device="nvme", nvme_path=NVME_PATH),
)
optimizer = dict(type=Adam, lr=0.00015, weight_decay=1e-2)
model = dict(type=gpt2_small, checkpoint=True)
