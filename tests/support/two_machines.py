"""Two machines on this one: network and host-name namespaces, joined by a veth pair. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("ip", "unshare", "hostname")
INTERFACE = "lan"


def are_possible() -> bool:
    return os.geteuid() == 0 and all(map(shutil.which, TOOLS))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine with a host name, which no other machine resolves, and an address."""

    name: str
    address: str
    namespace: str

    def start(self, words: Sequence[str], *, folder: Path, output: Path) -> subprocess.Popen[bytes]:
        """Start a command on this machine, with its output in a file."""
        shell = 'hostname "$0" && exec "$@"'
        command = ["unshare", "--uts", "sh", "-c", shell, self.name, *words]
        environ = {**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE, "CUDA_VISIBLE_DEVICES": ""}
        with output.open("wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],
                cwd=folder,
                env=environ,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def set_link(self, state: str) -> None:
        """Set the network link 'up' or 'down'."""
        _run("ip", "-n", self.namespace, "link", "set", INTERFACE, state)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Create two machines that reach each other, and remove them afterwards."""
    machines = [
        Machine(name=f"node-{n}", address=f"10.77.0.{n}", namespace=f"cuboid-{os.getpid()}-{n}")
        for n in (1, 2)
    ]
    with ExitStack() as stack:
        for machine in machines:
            _run("ip", "netns", "add", machine.namespace)
            stack.callback(_run, "ip", "netns", "delete", machine.namespace)
        one, two = (machine.namespace for machine in machines)
        peer = ("type", "veth", "peer", "name", INTERFACE, "netns", two)
        _run("ip", "-n", one, "link", "add", INTERFACE, *peer)
        for machine in machines:
            _run("ip", "-n", machine.namespace, "link", "set", "lo", "up")
            address = f"{machine.address}/24"
            _run("ip", "-n", machine.namespace, "address", "add", address, "dev", INTERFACE)
            machine.set_link("up")
        yield machines[0], machines[1]


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=60)
