"""Types of settings, with their bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from engine import discover
from engine.config.fields import LARGEST, IsPath, OneOf
from engine.files import paths
from engine.pipeline.schedule import SCHEDULES
from models.parallel.registry import modes
from models.presets import PRESETS

Count = Annotated[int, Ge(1), Le(LARGEST)]
CountOrNone = Annotated[int, Ge(0), Le(LARGEST)]
CodebookSize = Annotated[int, Ge(2), Le(2**16)]
Seed = Annotated[int, Ge(0), Lt(2**63)]
Bytes = Annotated[int, Ge(2**20), Le(2**40)]
RankCount = Annotated[int, Ge(1), Le(2**16)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
Ratio = Annotated[float, Gt(0), Lt(1)]

ModeName = Annotated[str, OneOf(lambda: list(modes()))]
PresetName = Annotated[str, OneOf(lambda: list(PRESETS))]
PipelineScheduleName = Annotated[str, OneOf(lambda: list(SCHEDULES))]
OptimizerName = Annotated[str, OneOf(lambda: discover.module_names("engine.optim.optimizers"))]
LRScheduleName = Annotated[str, OneOf(lambda: discover.module_names("engine.optim.schedules"))]
SourceName = Annotated[str, OneOf(lambda: discover.module_names("engine.data.sources"))]
TokenizerName = Annotated[str, OneOf(lambda: discover.module_names("engine.data.tokenizers"))]

NewPath = Annotated[str, IsPath()]
DataFile = Annotated[str, IsPath((paths.FILE,))]
DataPath = Annotated[str, IsPath((paths.FILE, paths.FOLDER))]
Folder = Annotated[str, IsPath((paths.FOLDER,))]

Precision = Literal["float32", "bf16", "fp16", "float64"]
DataUnit = Literal["step", "epoch", "token"]
OffloadTarget = Literal["cpu", "nvme"]
