"""The store in which the ranks of one launch meet, fresh for every attempt."""

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
"""In our part of a store: how many ranks are done with it."""


AGENT_SECONDS = 10.0
"""How long torchrun's own store is tried for. It was there before its ranks: one that does not
answer has been killed since."""


NAME_LOOKUP_SECONDS = 10.0
"""How long the name of rank 0's machine is looked up for: where machines come and go, a name may
come after the ranks."""


def cuboid_prefix(store: Store) -> Store:
    """The part of a store that torch does not write to."""
    return PrefixStore("cuboid", store)


@dataclass(frozen=True, kw_only=True)
class RendezvousResult:
    """``address`` is the store's (None: it is in this process). On rank 0, ``run_id`` is the run's
    and stays over torchrun's restarts; the other ranks ask rank 0."""

    store: Store
    address: tuple[str, int] | None
    run_id: str


def rendezvous(launch_info: LaunchInfo, timeout: float) -> RendezvousResult:
    """The store of this attempt; rank 0 serves it, which other ranks wait for.

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
        run_id += f"-{os.getppid()}"  # users name their launches alike
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
            f"port {launch_info.port} is in use on this machine: give another by {option}"
        ) from None
    return RendezvousResult(store=store, address=address, run_id=run_id)


def _rendezvous_under_agent(launch_info: LaunchInfo, timeout: float) -> RendezvousResult:
    """torchrun's store outlives a restart, with keys on which the next attempt hangs: so each
    attempt has a store of its own, and torchrun's only tells where it is."""
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
            raise RunError(f"rank {launch_info.rank}: rank 0 did not come within {timeout:.0f} s")
        time.sleep(0.02)
    host, _, port = agent.get(key).decode().rpartition(":")
    address = (host, int(port))
    return RendezvousResult(store=_connect(address, timeout), address=address, run_id="")


def _start_server(port: int, timeout: float) -> TCPStore:
    """Bound to every address of this machine, whose name in the world need not resolve here."""
    return TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
    )


def _connect(address: tuple[str, int], timeout: float) -> TCPStore:
    """A TCPStore that has to wait for its server prints C++ traces and holds signals up: so wait
    first."""
    deadline = time.monotonic() + timeout
    named = time.monotonic() + min(timeout, NAME_LOOKUP_SECONDS)
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            store = TCPStore(*address, timeout=timedelta(seconds=timeout))
            if not cuboid_prefix(store).check([EXITED]):
                return store
            problem = "a run that is ending has the port"  # rank 0 has not closed its last store
        except (OSError, DistNetworkError) as error:
            problem = str(error)
            if isinstance(error, socket.gaierror) and time.monotonic() > named:
                raise UserError(
                    f"the machine of rank 0, {address[0]}, has no address here "
                    f"({error.strerror}): name it by MASTER_ADDR or --host as others reach it"
                ) from None
        if time.monotonic() > deadline:
            host, port = address
            raise RunError(f"nothing answers at {host}:{port} ({problem})")
        time.sleep(0.1)


def _own_address(launch_info: LaunchInfo) -> str:
    """How other machines reach this one: by its address on the way to torchrun's store, or, where
    that is here, by the name they have for it."""
    family, kind, protocol, _, there = socket.getaddrinfo(
        launch_info.host, launch_info.port, type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(there)  # sends nothing
        mine = str(probe.getsockname()[0])
    return launch_info.host if ip_address(mine).is_loopback else mine
