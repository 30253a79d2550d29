"""Rendezvous: rank 0 starts a store, a new one for every attempt, and the other ranks connect."""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

from torch.distributed import DistNetworkError, HashStore, PrefixStore, Store, TCPStore

from engine.errors import RunError, UserError
from engine.world.coordination.launch_environment import LOOPBACK, LaunchInfo

EXITED = "left"
"""Key in the store: the number of ranks that no longer need it."""
AGENT_SECONDS = 10.0
"""Timeout for torchrun's own store. It is older than the ranks: if it does not answer, torchrun was
killed."""
NAME_LOOKUP_SECONDS = 10.0
"""Timeout for resolving the host name of rank 0: in a cluster that starts machines on demand, the
name may be registered after the ranks have started."""


def cuboid_prefix(store: Store) -> Store:
    """Return a view of ``store`` with a key prefix that torch does not use."""
    return PrefixStore("cuboid", store)


@dataclass(frozen=True, kw_only=True)
class RendezvousResult:
    """The store of this attempt to run the launch."""

    store: Store
    address: tuple[str, int] | None
    """Host and port of the store; None if it is in this process."""
    run_id: str
    """On rank 0, the id of the run, the same after a restart by torchrun; the other ranks get it
    from rank 0."""


def rendezvous(launch_info: LaunchInfo, timeout: float) -> RendezvousResult:
    """Start the store of this attempt on rank 0, or connect to it on another rank.

    Raises:
        UserError: the port is in use.
        RunError: rank 0 cannot be reached within ``timeout`` seconds.
    """
    run_id = launch_info.launch_id or uuid.uuid4().hex
    if launch_info.launcher == "alone":
        return RendezvousResult(store=HashStore(), address=None, run_id=run_id)
    if launch_info.agent:
        return _rendezvous_under_agent(launch_info, timeout)
    if launch_info.launcher == "torchrun":
        run_id += f"-{os.getppid()}"  # users reuse names of launches
    address = (launch_info.host, launch_info.port)
    if launch_info.rank:
        return RendezvousResult(store=_connect(address, timeout), address=address, run_id=run_id)
    try:
        store = _start_server(launch_info.port, timeout)
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        option = "--master_port" if launch_info.launcher == "torchrun" else "MASTER_PORT or --port"
        raise UserError(
            f"port {launch_info.port} is in use on this machine; choose another with {option}"
        ) from None
    return RendezvousResult(store=store, address=address, run_id=run_id)


def _rendezvous_under_agent(launch_info: LaunchInfo, timeout: float) -> RendezvousResult:
    """Start or connect to a new store, whose address rank 0 publishes in torchrun's store.
    torchrun's store is not used itself: it outlives a restart, with keys on which the next attempt
    would hang."""
    agent = _connect((launch_info.host, launch_info.port), min(timeout, AGENT_SECONDS))
    key = f"cuboid/store/{launch_info.attempt}"
    if launch_info.rank == 0:
        run_id = agent.compare_set("cuboid/run", "", uuid.uuid4().hex).decode()
        store = _start_server(0, timeout)
        address = (_own_address(launch_info), store.port)
        agent.set(key, "{}:{}".format(*address))
        return RendezvousResult(store=store, address=address, run_id=run_id)
    deadline = time.monotonic() + timeout
    while not agent.check([key]):
        if time.monotonic() > deadline:
            raise RunError(
                f"rank {launch_info.rank}: rank 0 did not respond within {timeout:.0f} s; check "
                "that it has started, or set a longer start_timeout"
            )
        time.sleep(0.02)
    host, _, port = agent.get(key).decode().rpartition(":")
    address = (host, int(port))
    return RendezvousResult(store=_connect(address, timeout), address=address, run_id="")


def _start_server(port: int, timeout: float) -> TCPStore:
    """Start a store that listens on all interfaces, because the public host name of this machine
    may not resolve locally."""
    return TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
    )


def _connect(address: tuple[str, int], timeout: float) -> TCPStore:
    """Connect to the store at ``address`` once it listens. A TCPStore that has to wait for its
    server blocks signal handlers and prints C++ stack traces, so wait with a plain socket first."""
    deadline = time.monotonic() + timeout
    name_deadline = time.monotonic() + min(timeout, NAME_LOOKUP_SECONDS)
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            store = TCPStore(*address, timeout=timedelta(seconds=timeout))
            if not cuboid_prefix(store).check([EXITED]):
                return store
            problem = "is still used by an earlier run, whose rank 0 has not exited"
            remedy = "end that process or choose another port"
        except (OSError, DistNetworkError) as error:
            problem, remedy = f"does not answer: {error}", "check that rank 0 has started"
            if isinstance(error, socket.gaierror) and time.monotonic() > name_deadline:
                raise UserError(
                    f"the host name of rank 0, {address[0]}, does not resolve here "
                    f"({error.strerror}); set MASTER_ADDR or --host to an address that all ranks "
                    "can reach"
                ) from None
        if time.monotonic() > deadline:
            host, port = address
            raise RunError(f"the store of rank 0, {host}:{port}, {problem}; {remedy}")
        time.sleep(0.1)


def _own_address(launch_info: LaunchInfo) -> str:
    """Return an address by which other machines reach this machine: the address of the interface
    that leads to torchrun's store or, if that store is on this machine, the host name that the
    ranks were given."""
    family, kind, protocol, _, destination = socket.getaddrinfo(
        launch_info.host, launch_info.port, type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(destination)  # sends nothing
        local_address = str(probe.getsockname()[0])
    return launch_info.host if ip_address(local_address).is_loopback else local_address
