"""Our step against a plain GPT-2's, in pairs of steps. This process starts both contenders.

python -m benchmarks.gpu_check.speed DEVICE FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from benchmarks.gpu_check.rates import case_of
from benchmarks.gpu_check.sizes import DRY, GPU
from benchmarks.step import pair


def main(device: str, report: Path) -> None:
    """Measure the ratios and write them to ``report`` as JSON."""
    sizes = GPU if device == GPU.device else DRY
    result = pair(case_of(sizes), sizes.pairs, torch.get_num_threads(), "bare")
    report.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
