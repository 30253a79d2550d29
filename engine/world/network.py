"""The network interfaces that the environment names for messages. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import psutil

GLOO = "GLOO_SOCKET_IFNAME"


def wrong_interfaces(environ: Mapping[str, str]) -> Iterator[str]:
    """State which of the interfaces that gloo is told to use are not there, a line in all."""
    named = environ.get(GLOO, "")
    addresses = psutil.net_if_addrs() if named else {}
    missing = [name for name in named.split(",") if name and name not in addresses]
    if missing:
        yield (
            f"{GLOO}={named} in the environment: this machine has no network interface "
            f"{' or '.join(missing)}; there are: {', '.join(sorted(addresses))}"
        )
