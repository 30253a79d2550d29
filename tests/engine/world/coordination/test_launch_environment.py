"""Rank and address from the environment of torchrun, Slurm and Open MPI, or from arguments."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import UserError
from engine.world.coordination.launch_environment import (
    LOOPBACK,
    LaunchInfo,
    find_launch_info,
    first_node,
    is_multi_node,
    is_rank_0,
)

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "3",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "abc",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_NODELIST": "gpu-[003-004]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-1",
}
BY_HAND: dict[str, Any] = {"host": "node7", "port": 2000, "rank": 1, "world_size": 2}


def test_environment_of_torchrun_gives_rank_size_and_address() -> None:
    assert find_launch_info(TORCHRUN, from_torch=True) == LaunchInfo(
        rank=3,
        size=4,
        host="node7",
        port=29400,
        launcher="torchrun",
        launch_id="abc",
        agent=True,
        attempt=2,
    )


def test_environment_of_torch_distributed_launch_equals_torchruns() -> None:
    assert find_launch_info(TORCHRUN, local_rank=3) == find_launch_info(TORCHRUN)


def test_torchrun_without_an_agent_store_gives_no_agent() -> None:
    assert not find_launch_info({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "False"}).agent


def test_torchrun_precedes_slurm() -> None:
    assert find_launch_info({**SLURM, **TORCHRUN}).launcher == "torchrun"


def test_environment_of_slurm_gives_rank_size_and_address() -> None:
    launch_info = find_launch_info(SLURM)
    assert (launch_info.rank, launch_info.size, launch_info.host) == (5, 8, "gpu-003")
    assert launch_info.launch_id == "slurm-4711.0"
    others = [find_launch_info({**SLURM, "SLURM_PROCID": str(rank)}).port for rank in range(8)]
    assert set(others) == {launch_info.port}
    assert find_launch_info({**SLURM, "SLURM_STEP_ID": "1"}).port != launch_info.port


def test_slurm_step_precedes_the_job() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NODELIST": "gpu-004"}
    launch_info = find_launch_info({**SLURM, **step})
    assert (launch_info.size, launch_info.host) == (6, LOOPBACK)


def test_host_and_port_arguments_precede_slurm() -> None:
    launch_info = find_launch_info(SLURM, host="10.0.0.1", port=29500)
    assert (launch_info.rank, launch_info.host, launch_info.port) == (5, "10.0.0.1", 29500)
    exported = {**SLURM, "MASTER_ADDR": "10.0.0.2", "MASTER_PORT": "29501"}
    assert find_launch_info(exported).host == "10.0.0.2"
    assert find_launch_info(exported).port == 29501


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu-[003-010,012],n1", "gpu-003"),
        ("gpu-[7,9]", "gpu-7"),
        ("rack[1-2]n[04-07]", "rack1n04"),
    ],
)
def test_node_list_gives_its_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
    assert is_multi_node(nodes) == (nodes != "n1")


def test_environment_of_open_mpi_gives_rank_size_and_address() -> None:
    launch_info = find_launch_info(OPEN_MPI)
    assert (launch_info.rank, launch_info.size, launch_info.host) == (1, 2, LOOPBACK)
    assert find_launch_info({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0"}).port == launch_info.port
    assert find_launch_info({**OPEN_MPI, "PMIX_NAMESPACE": "prterun-2"}).port != launch_info.port


def test_arguments_without_a_launcher_give_rank_size_and_address() -> None:
    launch_info = find_launch_info({}, **BY_HAND)
    assert (launch_info.rank, launch_info.size, launch_info.host, launch_info.port) == (
        1,
        2,
        "node7",
        2000,
    )
    assert find_launch_info({}) == LaunchInfo(rank=0, size=1, launcher="alone")


@pytest.mark.parametrize(
    ("environ", "arguments", "complaint"),
    [
        ({}, {"from_torch": True}, "--from_torch needs"),
        ({}, {"rank": 0}, "ranks started by hand need all of"),
        ({}, {**BY_HAND, "port": None}, "ranks started by hand need all of"),
        ({}, {**BY_HAND, "rank": 2}, "rank 2 is not one of 2 ranks"),
        ({}, {**BY_HAND, "port": 65536}, "port 65536 is not a port"),
        ({}, {"host": "node7"}, "--host and --port need the rank"),
        (TORCHRUN, BY_HAND, "leave them out"),
        ({**TORCHRUN, "RANK": "x"}, {}, "RANK=x in the environment is not a whole number"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, {}, "MASTER_ADDR is not in the environment"),
        (TORCHRUN, {"local_rank": 1}, "--local-rank=1 contradicts LOCAL_RANK=3 in"),
        ({}, {"local_rank": 0}, "--local-rank needs the environment that torchrun gives"),
        ({"RANK": "0"}, {}, "RANK=0 in the environment, but no WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, {}, "WORLD_SIZE=2 in the environment, but no RANK"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, "but no OMPI_COMM_WORLD_RANK, which Open MPI sets"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, {}, "but no SLURM_PROCID, which Slurm sets too; unset"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, {}, "PMI_SIZE=2 in .* an MPI that is not Open MPI"),
        ({**SLURM, "WORLD_SIZE": "4"}, {}, "WORLD_SIZE=4 in .* contradicts SLURM_NTASKS=8"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, {}, "srun python train_gpt.py"),
        ({**SLURM, "SLURM_NODELIST": ""}, {}, "give --host HOST"),
        ({"SLURM_PROCID": "0"}, {}, "SLURM_NTASKS is not in the environment, though SLURM_PROCID"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, {}, "OMPI_COMM_WORLD_SIZE is not in the environment"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, {}, "MASTER_PORT=http in the environment is not"),
        (
            {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
            {},
            "--host is missing, which Open MPI on several machines needs; add --host",
        ),
    ],
)
def test_contradictory_environment_is_rejected(
    environ: dict[str, str], arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        find_launch_info(environ, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "environ",
    [
        {"WORLD_SIZE": "1"},
        {"PMI_SIZE": "1"},
        {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8", "SLURM_NODELIST": "n[1-2]"},  # salloc's shell
        {"MASTER_ADDR": "node7", "MASTER_PORT": "29400"},
    ],
)
def test_unrelated_environment_gives_one_rank(
    environ: dict[str, str],
) -> None:
    assert find_launch_info(environ).launcher == "alone"
    assert (
        find_launch_info({**environ, "WORLD_SIZE": "2", "RANK": "0"} | TORCHRUN).launcher
        == "torchrun"
    )


def test_rank_0_is_known_before_ranks_connect() -> None:
    assert is_rank_0({})
    assert is_rank_0({"RANK": "0", "SLURM_PROCID": "1"})
    assert is_rank_0({"RANK": "x"}), "a rank that is no number is reported, not waited for"
    assert not is_rank_0(TORCHRUN)
    assert not is_rank_0(SLURM)
    assert not is_rank_0(OPEN_MPI)
