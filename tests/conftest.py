"""For all tests: what the user's terminal, launcher and shell say does not change a result; ranks
compute on one thread each; what is cached is not the user's, and is gone at the end; tests marked
gpu need one."""

import gc
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, and none that fails because the machine is busy.
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")

INHERITED = re.compile(
    r"FORCE_COLOR|NO_COLOR|CLICOLOR.*|TTY_.*|COLUMNS|LINES"
    r"|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|(MASTER|TORCHELASTIC|SLURM|OMPI|PMI|PMIX)_.*"
    r"|GLOO_SOCKET_IFNAME|CXX|TORCHDYNAMO_.*|MALLOC_.*|GLIBC_TUNABLES|PYTHONWARNINGS"
    r"|FAULT|DATA|NPROC|CONFIG"
)
"""Variables of the environment that change what a command of cuboid does or prints: those of
terminals, of launchers, of libraries and cuboid's own."""


def own_environment() -> None:
    """Let every process of the tests find the same environment, however the tests were started."""
    for name in filter(INHERITED.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ["TERM"] = "xterm"
    os.environ["OMP_NUM_THREADS"] = "1"
    found = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(found)
    # Ranks are forked: who has asked CUDA itself for its GPUs cannot be forked to use them.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


own_environment()
gc.disable()  # until all tests are collected: it takes a third of the time of their collection


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    cache = TemporaryDirectory(prefix="cuboid-cache-", ignore_cleanup_errors=True)
    os.environ["XDG_CACHE_HOME"] = cache.name
    config.add_cleanup(cache.cleanup)


@pytest.fixture(autouse=True, scope="module")
def _collections_skip_older_objects() -> None:
    """Exempt all objects from garbage collection that exist before a module's tests: thousands of
    tests and the modules of torch would make each collection last half a second."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # not before it is needed: most selections of tests do without

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
