"""The sbatch script of a job: directives and values from the plan, then the shell code of
slurm_job.sh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

NODE = Path(__file__).with_name("slurm_node.py")
BODY = Path(__file__).with_name("slurm_job.sh")
NETWORK_VARIABLES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "FI_", "UCX_")
"""Prefixes of the variables by which NCCL, gloo and the libraries below them choose a network."""


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A training job for Slurm."""

    name: str
    nodes: int
    ranks_per_node: int
    gpus: bool
    """Whether each rank has a GPU; otherwise none is requested."""
    cores_per_rank: int
    save_seconds: int
    """Seconds before the time limit at which Slurm sends SIGUSR1."""
    options: Mapping[str, str | int | None]
    """Further options of sbatch by name; those with the value None are left out."""
    flags: Sequence[str] = ()
    """Further options of sbatch as the user wrote them, without dashes, such as 'exclusive'."""
    setup: Sequence[str] = ()
    """Lines of shell code to run before the start."""
    environ: Mapping[str, str]
    """The environment, whose network variables the script sets again."""
    folder: Path
    """Working directory of the job."""
    run_folder: str
    """Run folder, quoted for the shell; it may contain variables."""
    python: str
    program: str
    """Path of train_gpt.py."""
    start: Sequence[str]
    """Arguments of train_gpt.py for the first start, quoted for the shell."""
    resume: Sequence[str]
    """Arguments of train_gpt.py once the run has a checkpoint, quoted for the shell."""

    def directives(self) -> list[str]:
        """Return the options of sbatch, without their dashes."""
        own: dict[str, str | int | None] = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": self.cores_per_rank * self.ranks_per_node,
            "gpus-per-node": self.ranks_per_node if self.gpus else None,
            **self.options,
            "signal": f"B:USR1@{self.save_seconds}",
            "open-mode": "append",
            "chdir": str(self.folder),
        }
        given = [f"{name}={quote(str(value))}" for name, value in own.items() if value is not None]
        return [*given, "requeue", *self.flags]

    def text(self, title: str) -> str:
        """Return the script; ``title`` is a comment in it."""
        network = {
            name: value
            for name, value in sorted(self.environ.items())
            if name.startswith(NETWORK_VARIABLES)
        }
        variables = {
            "python": quote(self.python),
            "node": quote(str(NODE)),
            "program": quote(self.program),
            "ranks_per_node": self.ranks_per_node,
            "run": self.run_folder,
            "start": f"({' '.join(self.start)})",
            "resume": f"({' '.join(self.resume)})",
        }
        lines = [
            "#!/bin/bash",
            f"# {' '.join(title.split())}; written by cuboid slurm",
            *(f"#SBATCH --{directive}" for directive in self.directives()),
            "",
            *(f"export {name}={quote(value)}" for name, value in network.items()),
            f"export OMP_NUM_THREADS={self.cores_per_rank}",
            *self.setup,
            *(f"{name}={value}" for name, value in variables.items()),
        ]
        return "\n".join(lines) + "\n" + BODY.read_text(encoding="utf-8")
