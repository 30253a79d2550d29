"""A character GPT, fully sharded; weights and optimizer states are kept on the host.

The text is `DATA=my.txt`, by default the one that comes with Python.
"""

from gpt_configs.chars_ddp import *

zero = dict(stage=3, offload="cpu", offload_params="cpu")
