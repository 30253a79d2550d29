"""A character GPT, fully sharded: ZeRO-3 over the data-parallel ranks.

The text is `DATA=my.txt`, by default the one that comes with Python.
"""

from gpt_configs.chars_ddp import *

zero = dict(stage=3)
