"""Writes docs/billions.md: the memory of the configs for billions of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.estimate.estimate import estimate
from engine.plan import make_plan

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "billions.md"
VOCABULARY = 65
"""Characters of the text that the published figures were measured with."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Published:
    """The figures of minGPT with Lightning and DeepSpeed for a size: GiB of each GPU and GB of all
    host memory; None: out of memory, or not published."""

    config: str
    on_8: float
    on_1: float | None
    host: int | None


PUBLISHED = (
    Published(config="billions_1b7", on_8=2, on_1=5.1, host=None),
    Published(config="billions_10b", on_8=6, on_1=26, host=None),
    Published(config="billions_20b", on_8=8, on_1=None, host=500),
    Published(config="billions_45b", on_8=14, on_1=None, host=950),
)

INTRODUCTION = """# Billions of parameters on few GPUs

`python docs/tabulate_billions.py` writes this page. The configs `gpt_configs/billions_*.py` train
character GPTs with ZeRO-3, weights and optimizer states on the host, and one sample of 128 tokens
per GPU. The table is for a text of 65 different characters. `cuboid validate FILE --gpus 8` prints
the same estimates by part. The published figures are those of minGPT with Lightning and DeepSpeed.
"""

REASONS = """## Reasons for the differences

- **On a GPU.** Both columns count what torch's allocator hands out. The estimate has the weights of
  one layer at a time, gathered in fp16 and freed after their use, with the gradients of that layer
  and the saved inputs of all blocks. DeepSpeed's buffers add to these: by default it keeps buckets
  of 2 x 10^8 elements for gathers and for reductions, gathers parameters ahead of their use, and
  does not free small ones. The shares of these in the published figures are not known.
- **On 1 and on 8 GPUs.** A gathered layer is whole on every GPU, however many there are. So the
  memory of a GPU hardly depends on their number here; what is sharded is on the host.
- **On the host.** The sum over all ranks does not depend on the number of GPUs: 16 bytes per
  parameter here, for float32 weights, gradients and two states of Adam. The published figures are
  {first:.0f} and {second:.0f} bytes per parameter. They are of the whole machine, and include
  the memory of Python, CUDA and the text in every process.
"""


def page() -> str:
    """Return the content of docs/billions.md."""
    rows = [
        "| config | parameters | GPUs | GiB of a GPU | published | GiB of the host | published |"
    ]
    rows.append("|---|---|---|---|---|---|---|")
    per_parameter = []
    for size in PUBLISHED:
        for gpus, published in ((1, size.on_1), (8, size.on_8)):
            parameters, gpu, host = needed(size.config, gpus)
            given = "out of memory" if published is None else f"{published:g} GiB"
            on_host = f"about {size.host} GB" if size.host and gpus == 8 else ""
            rows.append(
                f"| {size.config} | {parameters:,} | {gpus} | {gpu / GIB:.2f} | {given} | "
                f"{host / GIB:,.0f} | {on_host} |"
            )
        if size.host:
            per_parameter.append(size.host * 10**9 / parameters)
    first, second = per_parameter
    reasons = REASONS.format(first=first, second=second)
    return "\n".join([INTRODUCTION, *rows, "", reasons])


def needed(config: str, gpus: int) -> tuple[int, int, int]:
    """Return the parameters of a config, the bytes of a GPU, and of the host over all ranks."""
    plan = make_plan(
        ROOT / "gpt_configs" / f"{config}.py",
        gpus=gpus,
        overrides=(f"model.vocab_size={VOCABULARY}",),
        environ={},
    )
    found = estimate(plan)
    memory = found.fullest.memory
    return found.parameters, memory.total, memory.host * gpus


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
