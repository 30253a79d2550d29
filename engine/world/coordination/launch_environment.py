"""Rank, world size and rendezvous address of this process.

All three are read from the environment of torchrun, Slurm or Open MPI, or from arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

from engine.errors import UserError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class LaunchInfo:
    """The rank of this process, and the address at which the ranks of its launch connect."""

    rank: int
    size: int
    """Number of ranks."""
    host: str = LOOPBACK
    port: int = 0
    launcher: str
    """Name of the launcher, for messages; 'alone' without a launcher."""
    launch_id: str | None = None
    """Name of the launch, the same after a restart by torchrun; None if the launcher has none."""
    agent: bool = False
    """True if torchrun serves a store at the address; otherwise rank 0 serves a store there."""
    attempt: int = 0
    """Number of times that torchrun has restarted the launch."""


def find_launch_info(
    environ: Mapping[str, str],
    *,
    host: str | None = None,
    port: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    from_torch: bool = False,
    local_rank: int | None = None,
) -> LaunchInfo:
    """Find the rank of this process and the address of its launch; rank 0 of 1 without a launcher.
    ``local_rank``: the argument that torch.distributed.launch passes besides the environment.

    Raises:
        UserError: the environment or the arguments are incomplete or contradict each other.
    """
    by_hand = rank is not None or world_size is not None
    if "RANK" in environ and "WORLD_SIZE" in environ:
        if by_hand or host is not None or port is not None:
            raise UserError(
                "--host, --port, --rank and --world_size are for ranks started by hand, but "
                "torchrun started this one; leave them out"
            )
        if local_rank is not None and environ.get("LOCAL_RANK") != str(local_rank):
            raise UserError(
                f"--local-rank={local_rank} contradicts LOCAL_RANK={environ.get('LOCAL_RANK', '')} "
                "in the environment; leave it out"
            )
        return _check(_torchrun(environ))
    for option, given in (("--from_torch", from_torch), ("--local-rank", local_rank is not None)):
        if given:
            raise UserError(
                f"{option} needs the environment that torchrun gives (RANK, WORLD_SIZE); start "
                "with torchrun, or leave it out"
            )
    if by_hand:
        if rank is None or world_size is None or host is None or port is None:
            raise UserError(
                "ranks started by hand need all of --host, --port (where rank 0 is), --rank and "
                "--world_size"
            )
        return _check(
            LaunchInfo(rank=rank, size=world_size, host=host, port=port, launcher="by hand")
        )
    if "SLURM_PROCID" in environ:
        return _check(_slurm(environ, host, port))
    if "OMPI_COMM_WORLD_RANK" in environ:
        return _check(_open_mpi(environ, host, port))
    if host is not None or port is not None:
        raise UserError(
            "--host and --port need the rank and the number of ranks; add --rank and --world_size, "
            "or start with Slurm or Open MPI"
        )
    _require_complete_launch(environ)
    return LaunchInfo(rank=0, size=1, launcher="alone")


# (variables of a launcher, variables that it also sets, its name)
REQUIRED_TOGETHER = (
    (("RANK", "WORLD_SIZE"), ("RANK", "WORLD_SIZE"), "torchrun"),
    (("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_RANK",), "Open MPI"),
    (("SLURM_STEP_NUM_TASKS",), ("SLURM_PROCID",), "Slurm"),
)


def _require_complete_launch(environ: Mapping[str, str]) -> None:
    """Raise UserError if ``environ`` has only some of the variables of a launch of several ranks:
    each rank would train alone."""
    for present, needed, launcher in REQUIRED_TOGETHER:
        given = [f"{name}={environ[name]}" for name in present if name in environ]
        missing = [name for name in needed if name not in environ]
        if given and given != ["WORLD_SIZE=1"]:
            raise UserError(
                f"{', '.join(given)} in the environment, but no {' or '.join(missing)}, which "
                f"{launcher} sets too; unset it to run alone, or start with {launcher}"
            )
    if environ.get("PMI_SIZE", "1") != "1":
        raise UserError(
            f"PMI_SIZE={environ['PMI_SIZE']} in the environment: an MPI that is not Open MPI "
            "started this rank; start with torchrun, srun or Open MPI, or give each rank --host, "
            "--port, --rank and --world_size"
        )


def is_rank_0(environ: Mapping[str, str]) -> bool:
    """Return whether this is rank 0 according to the environment; True if it does not name a
    rank."""
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        if environ.get(name, "").isdecimal():
            return int(environ[name]) == 0
    return True


def _torchrun(environ: Mapping[str, str]) -> LaunchInfo:
    return LaunchInfo(
        rank=_number(environ, "RANK"),
        size=_number(environ, "WORLD_SIZE"),
        host=_text(environ, "MASTER_ADDR"),
        port=_number(environ, "MASTER_PORT", required_with="RANK and WORLD_SIZE"),
        launcher="torchrun",
        launch_id=environ.get("TORCHELASTIC_RUN_ID"),
        agent=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def _slurm(environ: Mapping[str, str], host: str | None, port: int | None) -> LaunchInfo:
    """Read Slurm's variables. Variables of the job step take precedence over variables of the job:
    ``srun -n 2`` may use a part of the job."""
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    size = _number(environ, tasks, required_with="SLURM_PROCID")
    if size > 1 and "SLURM_STEP_ID" not in environ:
        raise UserError(
            f"{tasks}={size}, and this process is the job's script itself, not one of {size} that "
            "srun starts: srun python train_gpt.py ..., or torchrun"
        )
    if environ.get("WORLD_SIZE", str(size)) != str(size):
        raise UserError(
            f"WORLD_SIZE={environ['WORLD_SIZE']} in the environment contradicts {tasks}={size}; "
            "unset it"
        )
    step = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}"
    host = host or environ.get("MASTER_ADDR")
    if host is None:
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST")
        if not nodes and size > 1:
            raise UserError("SLURM_NODELIST is not in the environment; give --host HOST of rank 0")
        host = first_node(nodes) if nodes and is_multi_node(nodes) else LOOPBACK
    return LaunchInfo(
        rank=_number(environ, "SLURM_PROCID"),
        size=size,
        host=host,
        port=_port(environ, port, step),
        launcher="Slurm",
        launch_id=f"slurm-{step}",
    )


def is_multi_node(nodes: str) -> bool:
    """Return whether a Slurm node list such as ``gpu-[003-010,012],n1`` has several machines."""
    return any(sign in nodes for sign in ",[")


def first_node(nodes: str) -> str:
    """Return the first machine of a Slurm node list: ``gpu-[003-010,012],n1`` -> ``gpu-003``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


def _open_mpi(environ: Mapping[str, str], host: str | None, port: int | None) -> LaunchInfo:
    size = _number(environ, "OMPI_COMM_WORLD_SIZE", required_with="OMPI_COMM_WORLD_RANK")
    host = host or environ.get("MASTER_ADDR")
    if host is None:
        if (
            _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", required_with="OMPI_COMM_WORLD_RANK")
            < size
        ):
            raise UserError(
                "--host is missing, which Open MPI on several machines needs; add --host HOST, the "
                "machine of rank 0"
            )
        host = LOOPBACK
    return LaunchInfo(
        rank=_number(environ, "OMPI_COMM_WORLD_RANK"),
        size=size,
        host=host,
        port=_port(environ, port, environ.get("PMIX_NAMESPACE", "")),
        launcher="Open MPI",
    )


def _check(launch_info: LaunchInfo) -> LaunchInfo:
    if not 0 <= launch_info.rank < launch_info.size:
        raise UserError(
            f"rank {launch_info.rank} is not one of {launch_info.size} ranks "
            f"({launch_info.launcher}); number them from 0 to {launch_info.size - 1}"
        )
    if not 0 < launch_info.port < 1 << 16:
        raise UserError(f"port {launch_info.port} is not a port; give one from 1 to 65535")
    return launch_info


def _text(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise UserError(
            f"{name} is not in the environment, though RANK and WORLD_SIZE are; set it to the "
            "address of rank 0, or unset them to run alone"
        )
    return environ[name]


def _number(environ: Mapping[str, str], name: str, *, required_with: str = "") -> int:
    """Return an environment variable as a whole number; raise UserError if the variable is missing
    or no number. ``required_with``: names of variables that are set, for the message."""
    value = environ.get(name)
    if value is None and required_with:
        raise UserError(
            f"{name} is not in the environment, though {required_with} is; set both or neither"
        )
    if value is None or not value.isdecimal():
        raise UserError(
            f"{name}={value or ''} in the environment is not a whole number; set it to one, as the "
            "launcher would"
        )
    return int(value)


def _port(environ: Mapping[str, str], port: int | None, launch: str) -> int:
    """Return ``port`` or, if it is None, MASTER_PORT or a port that all ranks compute from
    ``launch``, below the ports that Linux uses for outgoing connections."""
    if port is not None:
        return port
    if "MASTER_PORT" in environ:
        return _number(environ, "MASTER_PORT")
    return 12000 + crc32(launch.encode()) % 20000
