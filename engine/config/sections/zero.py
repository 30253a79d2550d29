"""Settings of ZeRO and offload."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le

from engine.config.fields import Section, setting
from engine.config.setting_types import Bytes, Folder, OffloadTarget


class ZeroSettings(Section):
    """ZeRO: training state sharded over the data-parallel ranks (Rajbhandari et al. 2020)."""

    stage: Annotated[int, Ge(0), Le(3)] = setting(
        "ZeRO stage: 1 shards optimizer states, 2 also gradients, 3 also parameters; 0: none", 0
    )
    depth: bool = setting(
        "also shard over the tensor-parallel ranks that replicate weights: 2.5d's DEPTH, or all of "
        "MODE='sequence'",
        False,
    )
    offload: OffloadTarget | None = setting(
        "location of optimizer states and master weights; None: on the device", None
    )
    offload_params: OffloadTarget | None = setting(
        "location of parameters between uses (stage 3); None: on the device", None
    )
    nvme_path: Folder | None = setting("folder on the NVMe disk, for offloading to 'nvme'", None)
    nvme_buffer: Bytes = setting(
        "bytes of memory per rank for prefetch and write-behind buffers", 2**28
    )
    nvme_store: Literal["tensornvme", "threads"] | None = setting(
        "library for optimizer state I/O; None: TensorNVMe if it is built, else threads", None
    )
