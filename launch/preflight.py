"""Whether the machine at hand can run a plan: its memory, its disks, the data. No torch.

Nothing is left behind: a folder is probed with a file that is written, synced and removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.data.data_file import data_files
from engine.data.detect_format import format_of
from engine.data.source import TOKENS, default_cache
from engine.errors import UserError
from engine.estimate.estimate import estimate
from engine.estimate.result import Estimate
from engine.formatting import format_bytes, plural
from engine.optim.registry import states_of
from engine.plan import Plan
from engine.world.compiler import missing_compiler
from engine.world.network import GLOO, wrong_interfaces
from engine.world.processor import usable_cores
from launch.machine import Machine
from launch.validate.inspection import MachineCheck, too_large


@dataclass(frozen=True, kw_only=True)
class FolderNeed:
    """A folder that a run writes into: ``name`` is how messages call it, ``what`` goes there."""

    name: str
    path: Path
    what: str
    bytes: int = 0
    must_exist: bool = False


def run_preflight(
    plan: Plan, machine: Machine, environ: Mapping[str, str], output: Path | None
) -> None:
    """What ``cuboid train`` asks before anything starts. Raises UserError with all problems."""
    found = estimate(plan, device=machine.device)
    checks = checks_here(plan, found, machine, environ, output)
    problems = [problem for check in checks for problem in check.problems]
    limit = machine.gpu_memory_for(plan.layout.gpus)
    if limit is not None and found.fullest.memory.total > limit:
        problems.insert(0, f"{plan.settings.source}: {too_large(found, limit)}")
    if problems:
        raise UserError("\n".join(problems))


def checks_here(
    plan: Plan,
    found: Estimate,
    machine: Machine,
    environ: Mapping[str, str],
    output: Path | None = None,
) -> Iterator[MachineCheck]:
    """Check this machine for the whole run, with an answer to each question."""
    yield _gpus(plan, machine)
    yield _host_memory(plan, found, machine)
    yield _data(plan)
    yield from _disks(list(needs(plan, found, environ, output)))
    if plan.settings.compile and not machine.gpus:
        yield _check("compiler", "there is one for C++", missing_compiler(plan, environ))
    if environ.get(GLOO):
        yield _check("network", f"{GLOO}={environ[GLOO]} is there", wrong_interfaces(environ))


def _check(about: str, fine: str, problems: Iterator[str]) -> MachineCheck:
    """The answer ``fine``, or the problems."""
    found = tuple(problems)
    return MachineCheck(about=about, finding="see below" if found else fine, problems=found)


def _gpus(plan: Plan, machine: Machine) -> MachineCheck:
    """The GPUs and the ranks on them; whether the model fits is not asked here."""
    ranks = plural(plan.layout.gpus, "rank")
    size = f" of {format_bytes(machine.gpu_memory)}" if machine.gpu_memory else ""
    finding = f"{machine.gpus}{size}, for {ranks}"
    if not machine.gpus:
        finding = f"none: {ranks} on {plural(usable_cores(), 'core')}"
    return MachineCheck(about="GPUs", finding=finding)


def needs(
    plan: Plan, found: Estimate, environ: Mapping[str, str], output: Path | None
) -> Iterator[FolderNeed]:
    """The folders of a run on this machine."""
    settings = plan.settings
    weight = 8 if settings.precision == "float64" else 4
    yield FolderNeed(
        name=f"--output {output}" if output else plan.cite("log.dir"),
        path=output or Path(settings.log.dir or "runs"),
        what="weights",
        bytes=weight * found.parameters,
    )
    if settings.checkpoint.is_enabled:  # one at least; a run that goes on has others already
        yield FolderNeed(
            name=plan.cite("checkpoint.keep"),
            path=output or Path(settings.log.dir or "runs"),
            what="a checkpoint",
            bytes=weight * found.parameters * (1 + states_of(settings.optimizer)),
        )
    if settings.zero.nvme_path is not None and "nvme" in _offloads(plan):
        yield FolderNeed(
            name=plan.cite("zero.nvme_path"),
            path=Path(settings.zero.nvme_path),
            what="offloaded state",
            bytes=_all_ranks(plan, found, "nvme"),
            must_exist=True,
        )
    cache = Path(settings.data.cache) if settings.data.cache else default_cache(environ)
    if settings.data.type != "synthetic" and not _is_filled(cache):
        yield FolderNeed(name=plan.cite("data.cache"), path=cache, what="tokens")


def _is_filled(folder: Path) -> bool:
    """Whether tokens may be there already, so that none have to be written."""
    try:
        return any(folder.glob(f"*{TOKENS}"))
    except OSError:
        return False


def _offloads(plan: Plan) -> set[str | None]:
    return {plan.settings.zero.offload, plan.settings.zero.offload_params}


def _all_ranks(plan: Plan, found: Estimate, *parts: str) -> int:
    """Bytes of these parts of the memory, over all ranks."""
    each = plan.layout.tensor * plan.layout.data
    held: Iterator[int] = (getattr(one.memory, part) for one in found.stages for part in parts)
    return each * sum(held)


def _host_memory(plan: Plan, found: Estimate, machine: Machine) -> MachineCheck:
    on_gpus = machine.gpus > 0
    needed = _all_ranks(plan, found, "host", *([] if on_gpus else ["total"]))
    what = "offloading takes" if on_gpus else "without GPUs all ranks together take"
    taken = f"{what} {format_bytes(needed)} of the host's memory"
    problems = []
    if needed > machine.memory:
        problems.append(
            f"{plan.settings.source}: {taken}, and this machine has {format_bytes(machine.memory)}"
        )
    finding = f"{taken}, which has {format_bytes(machine.memory)}"
    return MachineCheck(about="memory", finding=finding, problems=tuple(problems))


def _data(plan: Plan) -> MachineCheck:
    """Check that data.path can be read, as far as the first bytes of its files tell."""
    data = plan.settings.data
    if data.path is None or data.type == "synthetic":
        return MachineCheck(about="data", finding=f"{data.type}, without a file")
    try:
        found = data_files(data.path)
        for file in found:
            if data.type == "auto":
                format_of(file)
    except UserError as error:
        problem = f"{plan.source_of['data.path'].origin}: {error}"
        return MachineCheck(about="data", finding="see below", problems=(problem,))
    size = format_bytes(sum(file.path.stat().st_size for file in found))
    return MachineCheck(about="data", finding=f"{plural(len(found), 'file')} of {size} can be read")


def _disks(wanted: list[FolderNeed]) -> Iterator[MachineCheck]:
    """Folders that cannot be used, and disks without the space for all that goes there."""
    by_disk: dict[int, list[tuple[FolderNeed, Path]]] = {}
    for need in wanted:
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
        goes = f"{' and '.join(parts)} go to that disk, which has {format_bytes(free)} free"
        problems = []
        if sum(need.bytes for need, _ in pairs) > free:
            largest = max((need for need, _ in pairs), key=lambda need: need.bytes)
            problems.append(f"{largest.name}: {goes}")
        folders = " and ".join(dict.fromkeys(str(need.path) for need, _ in pairs))
        space = goes if parts else f"{format_bytes(free)} free"
        finding = f"{folders} can be written; {space}"
        yield MachineCheck(about="disk", finding=finding, problems=tuple(problems))


def _nearest(need: FolderNeed) -> Path:
    """The folder itself, or the one it would be made in. Raises UserError."""
    path = need.path.absolute()
    if need.must_exist and not path.is_dir():
        raise UserError(f"{need.path} is not a folder of this machine")
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise UserError(f"{path} is not a folder")
    return path


def _probe(folder: Path) -> None:
    """Write, sync and remove a file. Raises OSError."""
    with tempfile.NamedTemporaryFile(prefix=".cuboid-probe-", dir=folder) as file:
        file.write(b"\0" * 4096)
        file.flush()
        os.fsync(file.fileno())
