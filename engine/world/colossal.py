"""Colossal-AI's global ParallelContext, which makes the process groups.

All workarounds for Colossal-AI are in this module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _abort_process_group, _set_pg_timeout

from engine.errors import UserError
from engine.layout import Layout

VERSION = "0.5.0"
INSTALL = f"pip install --no-deps colossalai=={VERSION}"


class ColossalContext:
    """The global ParallelContext, registered on an open default process group."""

    def __init__(self) -> None:
        """Import Colossal-AI.

        Raises:
            UserError: it is missing, of another version, or one of its imports fails.
        """
        try:
            installed = version("colossalai")
        except PackageNotFoundError:
            raise UserError(f"Colossal-AI is not installed; {INSTALL}") from None
        if installed != VERSION:
            raise UserError(f"Colossal-AI {installed} is installed, {VERSION} is needed; {INSTALL}")
        try:
            with _stub_packages():
                core = importlib.import_module("colossalai.legacy.core")
                modes = importlib.import_module("colossalai.legacy.context.parallel_mode")
                variables = importlib.import_module("colossalai.legacy.global_variables")
        except ImportError as error:
            raise UserError(f"Colossal-AI cannot be imported ({error}); {INSTALL}") from error
        self.context: Any = core.global_context
        self.modes: Any = modes.ParallelMode
        self._variables: Any = variables.tensor_parallel_env

    def open(self, layout: Layout, rank: int) -> None:
        """Make all process groups of ``layout``. Every rank calls this after the default group is
        open."""
        context, world = self.context, self.modes.GLOBAL
        # Its own launch() would open the default group at tcp://[host]:port, which Python >=
        # 3.11.4 refuses for anything but IPv6: so we open it, and register it as launch() does.
        # On gloo launch() registers no CPU group for GLOBAL, though the world is one.
        everyone = list(range(layout.gpus))
        cpu = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        context._register_dist(rank, layout.gpus, dist.group.WORLD, cpu, everyone, world)
        context.add_global_rank(world, rank)
        tensor: dict[str, Any] = {"size": layout.tensor, "mode": layout.mode.name}
        if not layout.mode.colossal_groups:
            tensor["mode"] = None  # Colossal-AI's value for no tensor parallelism
        if layout.mode.uses_depth:
            tensor["depth"] = layout.depth
        context.load_config({"parallel": {"pipeline": layout.pipeline, "tensor": tensor}})
        context.init_parallel_groups()

    def group(self, name: str) -> tuple[dist.ProcessGroup, list[int]] | None:
        """Return this rank's group of the ParallelMode called ``name``, and the ranks of the group;
        None if there is no such group (with one stage there is none of PIPELINE)."""
        mode = self.modes[name]
        if not self.context.is_initialized(mode):
            return None
        return self.context.get_group(mode), self.context.get_ranks_in_group(mode)

    def groups(self) -> list[dist.ProcessGroup]:
        """Return all process groups of this rank, including the CPU groups, without duplicates."""
        context = self.context
        groups = [*context._groups.values(), *context._cpu_groups.values()]
        return list({id(group): group for group in groups}.values())

    def set_timeouts(self, seconds: float) -> None:
        """Set the timeout of every group: new_group uses torch's default timeout, not the timeout
        of the default group."""
        for group in self.groups():
            _set_pg_timeout(timedelta(seconds=seconds), group)

    @property
    def cpu_group(self) -> dist.ProcessGroup:
        """Return the gloo group of all ranks."""
        group: dist.ProcessGroup = self.context.get_cpu_group(self.modes.GLOBAL)
        return group

    def close(self, *, failed: bool) -> None:
        """Destroy all process groups, the default group last, and reset the global context. After a
        failure, abort collectives in which other ranks may wait, and raise nothing."""
        try:
            if dist.is_initialized() and failed and dist.get_backend() == "nccl":
                _abort_process_group()  # destroy would wait for running collectives
            elif self.context.is_initialized(self.modes.GLOBAL):
                self.context.destroy()
            elif dist.is_initialized():
                dist.destroy_process_group()
        except RuntimeError:
            if not failed:
                raise
        finally:
            # destroy() keeps sizes, ranks and CPU groups, and Colossal-AI would assert that the
            # next world has the same sizes
            self._variables.load()
            self.context.__init__()


@contextmanager
def _stub_packages() -> Iterator[None]:
    """Replace the two packages that contain Colossal-AI's context by empty packages inside the
    block: the ``__init__`` of the packages takes 3 s and needs peft, bitsandbytes and more, which
    the context does not use."""
    spec = find_spec("colossalai")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("its files are missing")
    root = Path(spec.submodule_search_locations[0])
    empty = {"colossalai": root, "colossalai.legacy": root / "legacy"}
    empty = {name: path for name, path in empty.items() if name not in sys.modules}
    for name, path in empty.items():
        package = ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]
