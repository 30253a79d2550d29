"""A character GPT of 20 billion parameters: ZeRO-3, offloaded to the host.

docs/billions.md has its memory on 1 and on 8 GPUs.
"""

from gpt_configs.billions_1b7 import *
from gpt_configs.billions_1b7 import model

model = dict(model, n_layer=25, n_embd=8192)
