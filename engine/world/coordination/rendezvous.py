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

from engine.errors import Failed, Refused
from engine.world.launch_environment import LOOPBACK, Place

LEFT = "left"
"""In our part of a store: how many ranks are done with it."""


AGENT_SECONDS = 10.0
"""How long torchrun's own store is tried for. It was there before its ranks: one that does not
answer has been killed since."""


NAME_SECONDS = 10.0
"""How long the name of rank 0's machine is looked up for: where machines come and go, a name may
come after the ranks."""


def ours(store: Store) -> Store:
    """The part of a store that torch does not write to."""
    return PrefixStore("cuboid", store)


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """``address`` is the store's (None: it is in this process). On rank 0, ``run_id`` is the run's
    and stays over torchrun's restarts; the other ranks ask rank 0."""

    store: Store
    address: tuple[str, int] | None
    run_id: str


def meet(place: Place, timeout: float) -> Meeting:
    """The store of this attempt; rank 0 serves it, which other ranks wait for.

    Raises:
        Refused: the port is in use.
        Failed: rank 0 cannot be reached within ``timeout`` seconds.
    """
    run_id = place.launch or uuid.uuid4().hex
    if place.launcher == "alone":
        return Meeting(store=HashStore(), address=None, run_id=run_id)
    if place.agent:
        return _beside_agent(place, timeout)
    if place.launcher == "torchrun":
        run_id += f"-{os.getppid()}"  # users name their launches alike
    address = (place.host, place.port)
    if place.rank:
        return Meeting(store=_join(address, timeout), address=address, run_id=run_id)
    try:
        store = _serve(place.port, timeout)
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        option = "--master_port" if place.launcher == "torchrun" else "MASTER_PORT or --port"
        raise Refused(
            f"port {place.port} is in use on this machine: give another by {option}"
        ) from None
    return Meeting(store=store, address=address, run_id=run_id)


def _beside_agent(place: Place, timeout: float) -> Meeting:
    """torchrun's store outlives a restart, with keys on which the next attempt hangs: so each
    attempt has a store of its own, and torchrun's only tells where it is."""
    agent = _join((place.host, place.port), min(timeout, AGENT_SECONDS))
    key = f"cuboid/store/{place.attempt}"
    if place.rank == 0:
        run_id = agent.compare_set("cuboid/run", "", uuid.uuid4().hex).decode()
        store = _serve(0, timeout)
        address = (_own_address(place), store.port)
        agent.set(key, "{}:{}".format(*address))
        return Meeting(store=store, address=address, run_id=run_id)
    deadline = time.monotonic() + timeout
    while not agent.check([key]):
        if time.monotonic() > deadline:
            raise Failed(f"rank {place.rank}: rank 0 did not come within {timeout:.0f} s")
        time.sleep(0.02)
    host, _, port = agent.get(key).decode().rpartition(":")
    address = (host, int(port))
    return Meeting(store=_join(address, timeout), address=address, run_id="")


def _serve(port: int, timeout: float) -> TCPStore:
    """Bound to every address of this machine, whose name in the world need not resolve here."""
    return TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
    )


def _join(address: tuple[str, int], timeout: float) -> TCPStore:
    """A TCPStore that has to wait for its server prints C++ traces and holds signals up: so wait
    first."""
    deadline = time.monotonic() + timeout
    named = time.monotonic() + min(timeout, NAME_SECONDS)
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            store = TCPStore(*address, timeout=timedelta(seconds=timeout))
            if not ours(store).check([LEFT]):
                return store
            problem = "a run that is ending has the port"  # rank 0 has not closed its last store
        except (OSError, DistNetworkError) as error:
            problem = str(error)
            if isinstance(error, socket.gaierror) and time.monotonic() > named:
                raise Refused(
                    f"the machine of rank 0, {address[0]}, has no address here "
                    f"({error.strerror}): name it by MASTER_ADDR or --host as others reach it"
                ) from None
        if time.monotonic() > deadline:
            host, port = address
            raise Failed(f"nothing answers at {host}:{port} ({problem})")
        time.sleep(0.1)


def _own_address(place: Place) -> str:
    """How other machines reach this one: by its address on the way to torchrun's store, or, where
    that is here, by the name they have for it."""
    family, kind, protocol, _, there = socket.getaddrinfo(
        place.host, place.port, type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(there)  # sends nothing
        mine = str(probe.getsockname()[0])
    return place.host if ip_address(mine).is_loopback else mine
