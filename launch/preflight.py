"""Checks before a start that this machine can run a plan: GPUs, memory, data, disks, compiler and
network. Imports no torch.

Folders are probed with a temporary file that is written, fsynced and removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.config.sections.data import FILE_TYPES
from engine.data.input_files.data_file import data_files
from engine.data.input_files.detect_format import format_of
from engine.data.source import TOKENS, default_cache
from engine.errors import UserError
from engine.estimate.estimate import estimate
from engine.estimate.result import Estimate
from engine.files.full_disk import nearest_existing
from engine.formatting import format_bytes, plural
from engine.optim.registry import states_of
from engine.plan import Plan
from engine.runs.sink import enabled_sinks, missing_packages
from engine.world.compiler import missing_compiler
from engine.world.network import GLOO, wrong_interfaces
from engine.world.processor import usable_cores
from launch.machine import Machine
from launch.validate.inspection import MachineCheck, too_large


@dataclass(frozen=True, kw_only=True)
class FolderNeed:
    """A folder that a run writes into."""

    name: str
    """The setting or option that chose it, as messages cite it."""
    path: Path
    what: str
    """The contents that the run writes there, such as 'weights'."""
    bytes: int = 0
    """Their size."""
    must_exist: bool = False
    """Whether the run does not create the folder itself."""


def run_preflight(
    plan: Plan, machine: Machine, environ: Mapping[str, str], output: Path | None
) -> None:
    """Check before a start that this machine can run the plan. Raises UserError with all
    problems."""
    predicted = estimate(plan, device=machine.device)
    checks = checks_here(plan, predicted, machine, environ, output)
    problems = [problem for check in checks for problem in check.problems]
    limit = machine.gpu_memory_for(plan.layout.gpus)
    if limit is not None and predicted.fullest.memory.total > limit:
        problems.insert(0, f"{plan.settings.source}: {too_large(predicted, limit)}")
    if problems:
        raise UserError("\n".join(problems))


def checks_here(
    plan: Plan,
    predicted: Estimate,
    machine: Machine,
    environ: Mapping[str, str],
    output: Path | None = None,
) -> Iterator[MachineCheck]:
    """Check this machine for the plan; yield each check with its finding and problems."""
    yield _gpus(plan, machine)
    yield _host_memory(plan, predicted, machine)
    yield _data(plan)
    yield from _disks(list(needs(plan, predicted, environ, output)))
    if plan.settings.compile and not machine.gpus:
        yield _check("compiler", "C++ compiler found", missing_compiler(plan, environ))
    if sinks := enabled_sinks(plan.settings):
        found = f"those of log.{' and log.'.join(sinks)} are installed"
        yield _check("packages", found, missing_packages(plan))
    if environ.get(GLOO):
        yield _check("network", f"{GLOO}={environ[GLOO]} found", wrong_interfaces(environ))


def _check(about: str, passed: str, problems: Iterator[str]) -> MachineCheck:
    """Return a check with the finding ``passed`` if there are no problems."""
    lines = tuple(problems)
    return MachineCheck(about=about, finding="see below" if lines else passed, problems=lines)


def _gpus(plan: Plan, machine: Machine) -> MachineCheck:
    """Report the number of GPUs and of ranks, without a check of the GPUs' memory."""
    ranks = plural(plan.layout.gpus, "rank")
    size = f" of {format_bytes(machine.gpu_memory)}" if machine.gpu_memory else ""
    finding = f"{machine.gpus}{size}, for {ranks}"
    if not machine.gpus:
        finding = f"none: {ranks} on {plural(usable_cores(), 'core')}"
    return MachineCheck(about="GPUs", finding=finding)


def needs(
    plan: Plan, predicted: Estimate, environ: Mapping[str, str], output: Path | None
) -> Iterator[FolderNeed]:
    """Yield the folders that the run writes into on this machine."""
    settings = plan.settings
    weight = 8 if settings.precision == "float64" else 4
    yield FolderNeed(
        name=f"--output {output}" if output else plan.cite("log.dir"),
        path=output or Path(settings.log.dir or "runs"),
        what="weights",
        bytes=weight * predicted.parameters,
    )
    if settings.checkpoint.is_enabled:  # one: a resumed run has written the others already
        yield FolderNeed(
            name=plan.cite("checkpoint.keep"),
            path=output or Path(settings.log.dir or "runs"),
            what="a checkpoint",
            bytes=weight * predicted.parameters * (1 + states_of(settings.optimizer)),
        )
    if settings.zero.nvme_path is not None and "nvme" in _offloads(plan):
        yield FolderNeed(
            name=plan.cite("zero.nvme_path"),
            path=Path(settings.zero.nvme_path),
            what="offloaded state",
            bytes=_all_ranks(plan, predicted, "nvme"),
            must_exist=True,
        )
    cache = Path(settings.data.cache) if settings.data.cache else default_cache(environ)
    if settings.data.type in FILE_TYPES and not _is_filled(cache):
        yield FolderNeed(name=plan.cite("data.cache"), path=cache, what="tokens")


def _is_filled(folder: Path) -> bool:
    """Return whether the token cache ``folder`` has tokens, so that the run may not need to write
    any."""
    try:
        return any(folder.glob(f"*{TOKENS}"))
    except OSError:
        return False


def _offloads(plan: Plan) -> set[str | None]:
    return {plan.settings.zero.offload, plan.settings.zero.offload_params}


def _all_ranks(plan: Plan, predicted: Estimate, *parts: str) -> int:
    """Return the bytes of these ``parts`` of the predicted memory, summed over all ranks."""
    ranks_per_stage = plan.layout.tensor * plan.layout.data
    sizes: Iterator[int] = (
        getattr(stage.memory, part) for stage in predicted.stages for part in parts
    )
    return ranks_per_stage * sum(sizes)


def _host_memory(plan: Plan, predicted: Estimate, machine: Machine) -> MachineCheck:
    on_gpus = machine.gpus > 0
    needed = _all_ranks(plan, predicted, "host", *([] if on_gpus else ["total"]))
    what = "offloading needs" if on_gpus else "without GPUs all ranks together need"
    need = f"{what} {format_bytes(needed)} of host memory"
    problems = []
    if needed > machine.memory:
        problems.append(
            f"{plan.settings.source}: {need}, but this machine has {format_bytes(machine.memory)}"
        )
    finding = f"{need}, of {format_bytes(machine.memory)}"
    return MachineCheck(about="memory", finding=finding, problems=tuple(problems))


def _data(plan: Plan) -> MachineCheck:
    """Check that data.path can be read and that the first bytes of its files are of a known
    format."""
    data = plan.settings.data
    if data.path is None or data.type == "synthetic":
        return MachineCheck(about="data", finding=f"{data.type}, no file needed")
    try:
        files = data_files(data.path)
        for file in files:
            if data.type == "auto":
                format_of(file)
    except UserError as error:
        problem = f"{plan.source_of['data.path'].origin}: {error}"
        return MachineCheck(about="data", finding="see below", problems=(problem,))
    size = format_bytes(sum(file.path.stat().st_size for file in files))
    return MachineCheck(about="data", finding=f"{plural(len(files), 'file')} of {size} can be read")


def _disks(needs: list[FolderNeed]) -> Iterator[MachineCheck]:
    """Check that each folder can be written, and that each disk has the space for all of them."""
    by_disk: dict[int, list[tuple[FolderNeed, Path]]] = {}
    for need in needs:
        try:
            folder = _nearest(need)
            _probe(folder)
            by_disk.setdefault(folder.stat().st_dev, []).append((need, folder))
        except UserError as error:
            yield MachineCheck(
                about="disk", finding="see below", problems=(f"{need.name}: {error}",)
            )
        except OSError as error:
            problem = f"{need.name}: {need.path} cannot be written: {error.strerror or error}"
            yield MachineCheck(about="disk", finding="see below", problems=(problem,))
    for pairs in by_disk.values():
        free = shutil.disk_usage(pairs[0][1]).free
        parts = [f"{format_bytes(need.bytes)} of {need.what}" for need, _ in pairs if need.bytes]
        needed = f"{' and '.join(parts)} to write, {format_bytes(free)} free"
        problems = []
        if sum(need.bytes for need, _ in pairs) > free:
            largest = max((need for need, _ in pairs), key=lambda need: need.bytes)
            problems.append(f"{largest.name}: not enough disk space: {needed}")
        folders = " and ".join(dict.fromkeys(str(need.path) for need, _ in pairs))
        space = needed if parts else f"{format_bytes(free)} free"
        finding = f"{folders} can be written; {space}"
        yield MachineCheck(about="disk", finding=finding, problems=tuple(problems))


def _nearest(need: FolderNeed) -> Path:
    """Return the folder of ``need``, or if it does not exist its nearest existing parent. Raises
    UserError."""
    path = need.path.absolute()
    if need.must_exist and not path.is_dir():
        raise UserError(f"{need.path} is not a folder on this machine; create it")
    path = nearest_existing(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; choose another path")
    return path


def _probe(folder: Path) -> None:
    """Write, fsync and remove a temporary file. Raises OSError."""
    with tempfile.NamedTemporaryFile(prefix=".cuboid-probe-", dir=folder) as file:
        file.write(b"\0" * 4096)
        file.flush()
        os.fsync(file.fileno())
