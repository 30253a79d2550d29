"""Which GPU each rank takes, and when NCCL can carry the messages."""

from __future__ import annotations

import pytest

from engine.errors import UserError
from engine.world.devices import VisibleGpus, assign_devices


def machine(name: str, *gpus: str, ranks: int) -> list[VisibleGpus]:
    return [VisibleGpus(host=name, gpus=gpus)] * ranks


def test_a_gpu_each_on_two_machines() -> None:
    cards = machine("a", "a0", "a1", ranks=2) + machine("b", "b0", "b1", ranks=2)
    found = assign_devices(cards)
    assert found.local_ranks == (0, 1, 0, 1)
    assert found.local_sizes == (2, 2, 2, 2)
    assert found.gpus == (0, 1, 0, 1)
    assert (found.backend, found.warnings) == ("nccl", ())


def test_ranks_that_alternate_between_machines_count_on_their_own() -> None:
    a, b = VisibleGpus(host="a", gpus=("a0", "a1")), VisibleGpus(host="b", gpus=("b0", "b1"))
    assert assign_devices([a, b, a, b]).gpus == (0, 0, 1, 1)


def test_each_rank_sees_its_own_gpu_only() -> None:
    """Slurm's --gpus-per-task: every rank sees one GPU, and they are not the same."""
    found = assign_devices([VisibleGpus(host="a", gpus=(gpu,)) for gpu in ("a0", "a1", "a2")])
    assert found.gpus == (0, 0, 0)
    assert found.local_ranks == (0, 1, 2)
    assert found.backend == "nccl"


def test_machines_of_one_name() -> None:
    """Containers often are all called localhost: their GPUs tell them apart."""
    cards = machine("localhost", "a0", "a1", ranks=2) + machine("localhost", "b0", "b1", ranks=2)
    assert assign_devices(cards).gpus == (0, 1, 0, 1)
    assert assign_devices(cards).backend == "nccl"


def test_more_ranks_than_gpus_go_over_gloo_with_a_warning() -> None:
    found = assign_devices(machine("a", "a0", ranks=2) + machine("b", "b0", ranks=1))
    assert found.gpus == (0, 0, 0)
    assert found.backend == "gloo"
    assert found.warnings == (
        "ranks 0 and 1 share GPUs, which is slow, and NCCL refuses: gloo carries messages",
    )


def test_no_gpu() -> None:
    found = assign_devices(machine("a", ranks=2))
    assert found.gpus == (None, None)
    assert (found.backend, found.warnings) == ("gloo", ())


def test_a_machine_without_gpus_takes_all_to_the_cpu() -> None:
    found = assign_devices(machine("a", "a0", ranks=1) + machine("b", ranks=1))
    assert found.gpus == (None, None)
    assert found.backend == "gloo"
    assert found.warnings == ("rank 1 found no GPU: all ranks compute on CPUs",)


def test_what_is_asked_for_decides() -> None:
    assert assign_devices(machine("a", "a0", "a1", ranks=2), "gloo").backend == "gloo"
    assert assign_devices(machine("a", "a0", "a1", ranks=2), "gloo").gpus == (0, 1)
    assert assign_devices(machine("a", "a0", ranks=1), nccl=False).backend == "gloo"


@pytest.mark.parametrize(
    ("cards", "complaint"),
    [(machine("a", "a0", ranks=2), "ranks 0 and 1 share one"), (machine("a", ranks=1), "rank 0")],
)
def test_nccl_where_it_cannot_work_is_refused(cards: list[VisibleGpus], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        assign_devices(cards, "nccl")
