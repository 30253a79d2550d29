"""Network interfaces that the environment selects for gloo. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import psutil

GLOO = "GLOO_SOCKET_IFNAME"


def wrong_interfaces(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a message if gloo is set to use interfaces that this machine does not have."""
    selected = environ.get(GLOO, "")
    addresses = psutil.net_if_addrs() if selected else {}
    missing = [name for name in selected.split(",") if name and name not in addresses]
    if missing:
        yield (
            f"{GLOO}={selected} in the environment: this machine has no network interface "
            f"{' or '.join(missing)}; there are: {', '.join(sorted(addresses))}"
        )
