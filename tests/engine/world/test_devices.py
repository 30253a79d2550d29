"""Assignment of GPUs to ranks, and the choice between NCCL and gloo."""

from __future__ import annotations

import pytest

from engine.errors import UserError
from engine.world.devices import VisibleGpus, assign_devices


def machine(name: str, *gpus: str, ranks: int) -> list[VisibleGpus]:
    return [VisibleGpus(host=name, gpus=gpus)] * ranks


def test_nccl_with_a_gpu_per_rank_on_two_machines() -> None:
    cards = machine("a", "a0", "a1", ranks=2) + machine("b", "b0", "b1", ranks=2)
    found = assign_devices(cards)
    assert found.local_ranks == (0, 1, 0, 1)
    assert found.local_sizes == (2, 2, 2, 2)
    assert found.gpus == (0, 1, 0, 1)
    assert (found.backend, found.warnings) == ("nccl", ())


def test_alternating_machines_number_their_ranks_separately() -> None:
    a, b = VisibleGpus(host="a", gpus=("a0", "a1")), VisibleGpus(host="b", gpus=("b0", "b1"))
    assert assign_devices([a, b, a, b]).gpus == (0, 0, 1, 1)


def test_ranks_that_each_see_one_gpu_use_nccl() -> None:
    """With Slurm's --gpus-per-task every rank sees one GPU, each another."""
    found = assign_devices([VisibleGpus(host="a", gpus=(gpu,)) for gpu in ("a0", "a1", "a2")])
    assert found.gpus == (0, 0, 0)
    assert found.local_ranks == (0, 1, 2)
    assert found.backend == "nccl"


def test_machines_with_equal_names_are_distinguished_by_gpus() -> None:
    """Containers are often all called localhost; their GPUs differ."""
    cards = machine("localhost", "a0", "a1", ranks=2) + machine("localhost", "b0", "b1", ranks=2)
    assert assign_devices(cards).gpus == (0, 1, 0, 1)
    assert assign_devices(cards).backend == "nccl"


def test_shared_gpus_use_gloo_with_a_warning() -> None:
    found = assign_devices(machine("a", "a0", ranks=2) + machine("b", "b0", ranks=1))
    assert found.gpus == (0, 0, 0)
    assert found.backend == "gloo"
    assert found.warnings == (
        "ranks 0 and 1 share GPUs, which is slow, and NCCL refuses: gloo carries messages",
    )


def test_ranks_without_gpus_use_the_cpu() -> None:
    found = assign_devices(machine("a", ranks=2))
    assert found.gpus == (None, None)
    assert (found.backend, found.warnings) == ("gloo", ())


def test_machine_without_gpus_makes_all_ranks_use_the_cpu() -> None:
    found = assign_devices(machine("a", "a0", ranks=1) + machine("b", ranks=1))
    assert found.gpus == (None, None)
    assert found.backend == "gloo"
    assert found.warnings == ("rank 1 found no GPU: all ranks compute on CPUs",)


def test_requested_backend_is_used() -> None:
    assert assign_devices(machine("a", "a0", "a1", ranks=2), "gloo").backend == "gloo"
    assert assign_devices(machine("a", "a0", "a1", ranks=2), "gloo").gpus == (0, 1)
    assert assign_devices(machine("a", "a0", ranks=1), nccl=False).backend == "gloo"


@pytest.mark.parametrize(
    ("cards", "complaint"),
    [(machine("a", "a0", ranks=2), "ranks 0 and 1 share one"), (machine("a", ranks=1), "rank 0")],
)
def test_requested_nccl_without_a_gpu_per_rank_is_rejected(
    cards: list[VisibleGpus], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        assign_devices(cards, "nccl")
