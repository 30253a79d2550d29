"""For any values of settings a config is planned or rejected with messages, quickly."""

import time
from copy import deepcopy
from pathlib import Path as File
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.aliases import ALIASES
from engine.config.ignored_keys import IGNORED_KEYS
from engine.config.resolve import read_setting_sources
from engine.config.values import Document, Origin, Path, Symbol
from engine.errors import ConfigError
from engine.plan import ConfigFile, plan_from

CONFIG = ConfigFile(path=File("c.py"))
SYMBOLS = st.builds(
    Symbol,
    st.sampled_from(["torch.half", "torch.optim.Adam", "titans.model.gpt.gpt2_small", "x.y"]),
    st.none() | st.just(()),
    st.none(),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 12)
    | st.sampled_from([64, 1024, 2**16, 2**31, 2**63, -(10**30), 10**400])
    | st.floats()
    | st.sampled_from(["1d", "2d", "2.5d", "3d", "serial", "gpt2_small", "cpu", "nvme", "auto"])
    | st.text(max_size=5)
    | SYMBOLS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=4,
)
SANE: dict[str, Any] = {
    "BATCH_SIZE": 8,
    "SEQ_LEN": 64,
    "MAX_STEPS": 4,
    "model": {"type": "gpt2_small"},
}


def nested(keys: dict[str, Any]) -> dict[str, Any]:
    """Convert dotted keys to a config's values; a key that is no longer a section keeps its
    value."""
    values = deepcopy(SANE)
    for key, value in keys.items():
        *sections, last = key.split(".")
        inner = values
        for section in sections:
            if not isinstance(inner.get(section), dict):
                inner[section] = {}
            inner = inner[section]
        inner[last] = value
    return values


@given(
    keys=st.dictionaries(st.sampled_from([*ALIASES, *IGNORED_KEYS]), VALUES, max_size=6),
    gpus=st.none() | st.integers(1, 64),
)
@settings(max_examples=200, deadline=None)
def test_random_values_give_a_plan_or_messages(keys: dict[str, Any], gpus: int | None) -> None:
    values = nested(keys)
    origins: dict[Path, Origin] = {
        (name,): Origin("c.py", line, 1) for line, name in enumerate(values, start=1)
    }
    start = time.thread_time()
    lines = rejection(Document(values, origins), gpus)
    assert time.thread_time() - start < 10  # a thousandth is usual
    assert all(line.startswith("c.py") for line in lines)


def rejection(document: Document, gpus: int | None) -> list[str]:
    """Return the messages of a rejection; none for a plan."""
    try:
        statements = read_setting_sources("c.py", document, {})
        plan = plan_from(statements, name="c", gpus=gpus, config=CONFIG)
    except ConfigError as error:
        return str(error).splitlines()
    assert gpus is None or plan.layout.gpus == gpus
    return []
