from colossalai.nn.optimizer import Lamb
from colossalai.nn.lr_scheduler import OneCycleLR
from titans.model.gpt import gpt5
from titans.loss import FocalLoss
from colossalai.zero.shard_utils import OddStrategy
from colossalai.amp import AMP_TYPE

BATCH_SIZE = 8
SEQ_LEN = 1024
NUM_EPOCHS = 1
optimizer = dict(type=Lamb)
lr_scheduler = dict(type=OneCycleLR)
loss = dict(type=FocalLoss)
fp16 = dict(mode=AMP_TYPE.FP8)
zero = dict(model_config=dict(shard_strategy=OddStrategy()))
model = dict(type=gpt5)
