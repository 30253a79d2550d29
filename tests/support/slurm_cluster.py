"""A real Slurm on this machine: munged, slurmctld and two slurmds, which need root and Debian's
packages slurm-wlm and munge. Two partitions share the nodes: jobs in ``high`` preempt jobs in
``low``, which are requeued."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.worlds import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n1", "n2")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
# A requeued job waits until the credentials of its earlier start have expired
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MailProg=/bin/true
SelectType=select/linear
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=2
ReturnToService=2
{nodes}
PartitionName=low Nodes=n[1-2] PriorityTier=1 Default=YES
PartitionName=high Nodes=n[1-2] PriorityTier=2
"""


def is_installed() -> bool:
    return os.geteuid() == 0 and all(shutil.which(name, path=_path()) for name in DAEMONS)


def _path() -> str:
    return f"{os.environ['PATH']}{os.pathsep}/usr/sbin"


class SlurmCluster:
    """A running cluster. ``environ``: the environment in which its commands find it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def command(self, *words: str) -> str:
        """Run a command of Slurm and return its output."""
        done = subprocess.run(
            words, env=self.environ, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return the fields that scontrol shows of a job."""
        words = self.command("scontrol", "-o", "show", "job", number).split()
        return {name: value for name, _, value in (word.partition("=") for word in words)}


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Start a cluster whose files are in ``folder``, and end its processes afterwards."""
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    key, config = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    environ = {**os.environ, "PATH": _path(), "SLURM_CONF": str(config)}
    with ExitStack() as stack:
        ports = [stack.enter_context(free_port()) for _ in range(3)]
        nodes = [
            f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={os.cpu_count()} State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        ]
        config.write_text(
            CONFIG.format(
                host=socket.gethostname(),
                controller=ports[0],
                folder=folder,
                nodes="\n".join(nodes),
            )
        )
        munge = [f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "log-file")]
        munge += [f"--seed-file={folder}/munge.seed", f"--key-file={key}"]
        stack.enter_context(_daemon(environ, "munged", "--foreground", "--force", *munge))
        while not (folder / "munge.socket").exists():
            time.sleep(0.05)
        stack.enter_context(_daemon(environ, "slurmctld", "-D"))
        for node in NODES:
            stack.enter_context(_daemon(environ, "slurmd", "-D", "-N", node))
        cluster = SlurmCluster(environ)
        while cluster.command("sinfo", "-h", "-p", "low", "-o", "%T %D") != "idle 2":
            time.sleep(0.2)
        try:
            yield cluster
        finally:
            cluster.command("scancel", "--full", "--user=root")
            while cluster.command("squeue", "-h"):
                time.sleep(0.2)


@contextmanager
def _daemon(environ: Mapping[str, str], *words: str) -> Iterator[None]:
    """Run a daemon in the foreground until the end of the block."""
    process = subprocess.Popen(
        words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()
