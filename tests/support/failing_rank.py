"""A rank that fails in its first attempts: ``failing_rank.py CONFIG ATTEMPTS``.

The last rank fails right after a sum over the world. Rank 0 prints a line for each attempt: its
number, the sum and the id of the run.
"""

from __future__ import annotations

import os
import sys
import time

import torch

from engine.errors import RunError
from engine.plan import make_plan
from engine.world.coordination.launch_environment import find_launch_info
from engine.world.distributed import open_world


def main(config: str, attempts: int) -> int:
    launch_info = find_launch_info(os.environ)
    if launch_info.attempt and launch_info.rank == 0:
        time.sleep(1)  # the others come first, and must not find the last attempt's store
    try:
        with open_world(
            lambda: make_plan(config, gpus=launch_info.size, environ={}), launch_info
        ) as world:
            total = world.axes["world"].all_reduce(torch.ones(1))
            world.first_step_done()
            world.print_rank_0(
                f"attempt {world.attempt}: {total.item():.0f} ranks, run {world.run_id}"
            )
            if world.attempt < attempts and world.rank == world.size - 1:
                raise RunError("on purpose")
            world.axes["world"].all_reduce(total)
    except RunError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
