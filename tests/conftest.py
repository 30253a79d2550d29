"""For all tests: ranks compute on one thread each; what is cached is not the user's, and is gone at
the end; tests marked gpu need one."""

import os
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

# An example that takes 200 ms on a busy machine would fail its test.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ranks are forked: who has asked CUDA itself for its GPUs cannot be forked to use them.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


def pytest_configure(config: pytest.Config) -> None:
    cache = TemporaryDirectory(prefix="cuboid-cache-", ignore_cleanup_errors=True)
    os.environ["XDG_CACHE_HOME"] = cache.name
    config.add_cleanup(cache.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # not before it is needed: most selections of tests do without

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
