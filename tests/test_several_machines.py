"""A run on two machines: network namespaces with their own addresses and host names, which
torchrun's c10d rendezvous connects."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

import train_gpt
from tests.support.jobs import RUN, into_run, run
from tests.support.two_machines import Machine, are_possible, two_machines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not are_possible(), reason="network namespaces need root and iproute2"),
]
LAYOUT = ("TENSOR_PARALLEL=2", "MODE=1d")
PORT = 29500
"""Free on machines of their own."""


def output_of(machine: Machine, folder: Path) -> Path:
    return folder / f"{machine.name}.txt"


@contextmanager
def training(
    machines: Sequence[Machine], folder: Path, *overrides: str
) -> Iterator[list[Popen[bytes]]]:
    """Start the tiny training with one rank on each machine, as docs/several-machines.md says."""
    launchers = [
        machine.start(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                *("--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=my-job"),
                *(f"--rdzv_endpoint={machines[0].address}:{PORT}", "--log_dir=logs"),
                f"--rdzv_conf=is_host={int(machine is machines[0])}",
                *(f"--local_addr={machine.address}", train_gpt.__file__),
                *("--config=tiny.py", f"--output={RUN}", "--resume=auto", *LAYOUT, *overrides),
            ],
            folder=folder,
            output=output_of(machine, folder),
        )
        for machine in machines
    ]
    try:
        yield launchers
    finally:
        for launcher in launchers:
            launcher.kill()  # its ranks end with it
            launcher.wait()


def wait(condition: Callable[[], bool], launchers: Sequence[Popen[bytes]], folder: Path) -> None:
    """Wait for a condition while the launchers run."""
    while not condition():
        codes = [launcher.poll() for launcher in launchers]
        texts = [path.read_text(errors="replace") for path in folder.glob("node-*.txt")]
        assert codes == [None, None], "\n".join([str(codes), *texts])
        time.sleep(0.1)


def log_of(folder: Path) -> list[str]:
    """Return the complete lines of a run's log, without the fields that depend on time."""
    log = folder / RUN / "log.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [line.partition(', "tokens_per_second"')[0] for line in lines]


def test_two_machines_give_the_bits_of_one_and_resume_after_one_was_cut_off(tmp_path):
    """The run of two machines loses its link, ends with a message on either side, and resumes."""
    two, one = tmp_path / "two", tmp_path / "one"
    into_run(two)
    with two_machines() as machines:
        endless = ("MAX_STEPS=1000000", "timeout=20")
        with training(machines, two, *endless) as launchers:
            wait(lambda: len(log_of(two)) > 5, launchers, two)
            machines[1].set_link("down")
            for machine, other in (machines, machines[::-1]):
                output = output_of(machine, two)
                while f"on {other.name}) did not respond within 20 s" not in output.read_text():
                    time.sleep(0.1)
        machines[1].set_link("up")
        steps = len(log_of(two)) + 3
        with training(machines, two, f"MAX_STEPS={steps}") as launchers:
            assert [launcher.wait() for launcher in launchers] == [0, 0]
        assert "resuming from" in output_of(machines[0], two).read_text() + (
            output_of(machines[1], two).read_text()
        )
    ended = run(into_run(one, *LAYOUT, f"MAX_STEPS={steps}"), ranks=2)
    assert [rank.error for rank in ended] == ["", ""]
    assert log_of(two) == log_of(one)
    assert len(log_of(two)) == steps
    weights = Path(RUN) / "model.safetensors"
    assert (two / weights).read_bytes() == (one / weights).read_bytes()
