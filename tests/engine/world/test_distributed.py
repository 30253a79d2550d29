"""Worlds on real processes over gloo: start, rejected starts, failures and signals."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist

from engine.errors import RunError, UserError
from engine.plan import Plan, make_plan
from engine.world import colossal
from engine.world.coordination import rendezvous
from engine.world.coordination.failure_report import REASON
from engine.world.coordination.launch_environment import LOOPBACK, LaunchInfo
from engine.world.coordination.rendezvous import cuboid_prefix
from engine.world.distributed import open_world
from engine.world.world import World
from tests.support.worlds import WorldError, free_port, run_world

CONFIG = """
BATCH_SIZE = 4
SEQ_LEN = 8
MAX_STEPS = 1
model = dict(n_layer=2, n_head=4, n_embd=16, vocab_size=32)
data = dict(type="synthetic")
timeout = 200
start_timeout = 300
seed = 7
"""
Body = Callable[[World], Any]


@dataclass(frozen=True, kw_only=True)
class WorldCase:
    """A world of a test; ``odd`` gives some ranks other overrides."""

    body: Body
    config: str
    port: int
    overrides: tuple[str, ...] = ()
    odd: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    gpus: int | None = None  # of the plan; None: as many as there are ranks
    devices: str = ""  # CUDA_VISIBLE_DEVICES
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RankResult:
    """Result of a rank: of its body, or the error; and its stderr (``said``)."""

    result: Any
    error: str
    message: str
    said: str


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def port() -> Iterator[int]:
    """Return a free port; it stays bound, without listening, so that no other test gets it."""
    with free_port() as number:
        yield number


def enter(rank: int, size: int, case: WorldCase) -> RankResult:
    """Run one rank of a world that is started by hand; without a port, a world of one rank."""
    os.environ.update(case.environ, CUDA_VISIBLE_DEVICES=case.devices)
    launch_info = LaunchInfo(
        rank=rank, size=size, host=LOOPBACK, port=case.port, launcher="by hand"
    )
    if not case.port:
        launch_info = LaunchInfo(rank=0, size=1, launcher="alone")
    overrides = [*case.overrides, *case.odd.get(rank, ())]

    def plan() -> Plan:
        return make_plan(case.config, gpus=case.gpus or size, overrides=overrides, environ={})

    result, error, message = None, "", ""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            with open_world(plan, launch_info) as world:
                result = case.body(world)
        except (UserError, RunError) as reason:
            error = "UserError" if isinstance(reason, UserError) else "RunError"
            message = str(reason)
    assert not dist.is_initialized(), "the process group was left open"
    return RankResult(result=result, error=error, message=message, said=said.getvalue())


def enter_all(size: int, case: WorldCase) -> list[RankResult]:
    outcomes: list[RankResult] = run_world(size, enter, case, open_group=False)
    return outcomes


ONE_D = ("TENSOR_PARALLEL=2", "MODE=1d")


def nothing(world: World) -> None:
    pass


# A world that runs


def sums(world: World) -> dict[str, Any]:
    """Return the sum of the ranks along every axis, and the index of this rank."""
    total = {}
    for name, axis in world.axes.items():
        assert axis.size == (1 if axis.group is None else dist.get_world_size(axis.group))
        total[name] = axis.all_reduce(torch.tensor([float(world.rank)])).item()
    index = {name: axis.index for name, axis in world.axes.items()}
    return {"total": total, "index": index, "run": world.run_id, "local": world.local_rank}


def test_axis_connects_the_ranks_of_the_layout(config: str, port: int) -> None:
    overrides = ("TENSOR_PARALLEL=2", "MODE=2.5d", "parallel.tensor.depth=2", "PIPELINE=2")
    layout = make_plan(config, gpus=8, overrides=overrides, environ={}).layout
    assert layout.axes == {"data": 2, "pipeline": 2, "d": 2, "r": 1, "c": 1}
    outcomes = enter_all(8, WorldCase(body=sums, config=config, port=port, overrides=overrides))
    inside = tuple(layout.tensor_axes)
    along = {axis: (axis,) for axis in layout.axes} | {
        "world": ("data", "pipeline", *inside),
        "tensor": inside,
    }
    for rank, outcome in enumerate(outcomes):
        assert (outcome.error, outcome.said) == ("", "")
        for name, axes in along.items():
            members = next(group for group in layout.groups(*axes) if rank in group)
            assert outcome.result["total"][name] == sum(members), name
            assert outcome.result["index"][name] == members.index(rank), name
        assert outcome.result["local"] == rank
        assert outcome.result["run"] == outcomes[0].result["run"]


def timeouts(world: World) -> tuple[set[float], set[float]]:
    def now() -> set[float]:
        groups = [axis.group for axis in world.axes.values() if axis.group is not None]
        cpu = torch.device("cpu")
        return {g._get_backend(cpu).options._timeout.total_seconds() for g in groups}

    before = now()
    world.first_step_done()
    return before, now()


def test_timeout_of_the_start_is_replaced_after_the_first_step(config: str, port: int) -> None:
    case = WorldCase(body=timeouts, config=config, port=port, overrides=ONE_D)
    for outcome in enter_all(2, case):
        assert outcome.result == ({300.0}, {200.0})


def hold_up(world: World, busy: int, wait: Callable[[World], object]) -> None:
    """Wait on all ranks but ``busy``, which does something else until a rank has given up. All
    ranks are here before one begins to wait: on a busy machine any of them may be late."""
    world.first_step_done()
    store = cuboid_prefix(world.control_plane.store)
    store.set(f"rank {world.rank}", "")
    everyone = [f"rank {rank}" for rank in range(world.axes["world"].size)]
    while not store.check([REASON] if world.rank == busy else everyone):
        time.sleep(0.05)
    wait(world)


def hold_up_collective(world: World) -> None:
    hold_up(world, 0, lambda world: world.axes["world"].all_reduce(torch.ones(1)))


def hold_up_barrier(world: World) -> None:
    hold_up(world, 1, World.barrier)


@pytest.mark.parametrize(("body", "busy"), [(hold_up_collective, 0), (hold_up_barrier, 1)])
def test_rank_that_exceeds_the_step_timeout_is_named_and_no_other(
    config: str, port: int, body: Body, busy: int
) -> None:
    case = WorldCase(body=body, config=config, port=port, overrides=(*ONE_D, "timeout=4.0"))
    outcomes = enter_all(4, case)
    assert [outcome.error for outcome in outcomes] == ["RunError"] * 4
    printed = "".join(outcome.said for outcome in outcomes)
    line = r"it is at .*test_distributed.py:\d+, in hold_up"
    assert re.fullmatch(rf"rank {busy} did not respond within 4 s: {line}\n", printed), printed


def draw(world: World) -> list[float]:
    return [random.random(), numpy.random.random(), torch.rand(()).item()]


def test_seed_of_the_config_is_used_on_every_rank(config: str, port: int) -> None:
    case = WorldCase(body=draw, config=config, port=port, overrides=ONE_D)
    random.seed(7)
    numpy.random.seed(7)
    torch.manual_seed(7)
    expected = draw(None)  # type: ignore[arg-type]
    assert [outcome.result for outcome in enter_all(2, case)] == [expected, expected]


def two_worlds(rank: int, size: int, cases: Sequence[WorldCase]) -> list[RankResult]:
    return [enter(rank, size, case) for case in cases]


def test_process_opens_several_worlds_in_sequence(config: str, port: int) -> None:
    """Colossal-AI's context is global, and asserts that sizes do not change."""
    sharded = ("TENSOR_PARALLEL=4", "MODE=2d")
    serial = ("TENSOR_PARALLEL=1",)
    cases = [
        WorldCase(body=sums, config=config, port=port, overrides=overrides)
        for overrides in (sharded, serial, sharded)
    ]
    for outcomes in run_world(4, two_worlds, cases, open_group=False):
        assert [outcome.error for outcome in outcomes] == ["", "", ""]
        assert [len(outcome.result["index"]) for outcome in outcomes] == [6, 4, 6]


def look_around(world: World) -> tuple[bool, bool, str]:
    dist.all_reduce(torch.ones(1), group=world.cpu_group)
    single = all(axis.group is None for axis in world.axes.values())
    return world.is_main, single, world.run_on_rank_0(lambda: "word")


def test_world_of_one_process_needs_no_launcher_and_no_port(config: str) -> None:
    """Collectives work without a launcher and without a port."""
    outcome = enter_all(1, WorldCase(body=look_around, config=config, port=0))[0]
    assert (outcome.result, outcome.error, outcome.said) == ((True, True, "word"), "", "")


def sum_on_gpu(world: World) -> tuple[str, str, float]:
    x = torch.ones(1000, device=world.device)
    dist.all_reduce(torch.ones(1), group=world.cpu_group)
    return str(world.device), world.backend, world.axes["world"].all_reduce(x)[0].item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("size", "backend"), [(1, "nccl"), (4, "gloo")])
def test_nccl_uses_a_gpu_per_rank_and_gloo_shares_a_gpu(
    config: str, port: int, size: int, backend: str
) -> None:
    case = WorldCase(body=sum_on_gpu, config=config, port=port, devices="0")
    outcomes = enter_all(size, case)
    assert [outcome.result for outcome in outcomes] == [("cuda:0", backend, float(size))] * size
    assert ("share GPUs" in outcomes[0].said) == (backend == "gloo")


# Rejected starts


def refused(outcomes: list[RankResult], complaint: str) -> None:
    """Check that all ranks raise the same UserError, and only rank 0 prints it, in one line."""
    for outcome in outcomes:
        assert outcome.error == "UserError"
        assert complaint in outcome.message
        assert outcome.result is None
    assert [outcome.said for outcome in outcomes[1:]] == [""] * (len(outcomes) - 1)
    assert outcomes[0].said == f"{outcomes[0].message}\n"
    assert outcomes[0].said.count("\n") == 1


def test_number_of_ranks_that_does_not_fit_the_config_is_rejected(config: str, port: int) -> None:
    case = WorldCase(body=nothing, config=config, port=port, overrides=ONE_D)
    refused(enter_all(3, case), "3 GPUs are not a multiple of 2")


def test_plan_for_another_number_of_ranks_is_rejected(config: str, port: int) -> None:
    case = WorldCase(body=nothing, config=config, port=port, overrides=ONE_D, gpus=4)
    refused(enter_all(2, case), "the layout has 4 ranks, but 2 were started (by hand)")


def test_different_configs_on_machines_are_rejected(config: str, port: int) -> None:
    odd = {1: ("seed=8",), 3: ("seed=9",)}
    case = WorldCase(body=nothing, config=config, port=port, overrides=ONE_D, odd=odd)
    refused(enter_all(4, case), "ranks 1 and 3 resolved another config than rank 0")


def test_invalid_override_on_one_machine_is_rejected_on_all(config: str, port: int) -> None:
    case = WorldCase(body=nothing, config=config, port=port, overrides=ONE_D, odd={1: ("sede=8",)})
    refused(enter_all(2, case), "rank 1: command line: sede")


def refuse_on_one(world: World) -> None:
    def task() -> None:
        if world.rank == 1:
            raise UserError("no such text")

    world.run_on_all(task)


def refuse_on_main(world: World) -> None:
    def task() -> str:
        raise UserError(f"the folder is in use, says rank {world.rank}")

    world.run_on_rank_0(task)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (refuse_on_one, "rank 1: no such text"),
        (refuse_on_main, "the folder is in use, says rank 0"),
    ],
)
def test_user_error_in_a_task_is_raised_on_all_ranks(
    config: str, port: int, body: Body, complaint: str
) -> None:
    case = WorldCase(body=body, config=config, port=port, overrides=ONE_D)
    refused(enter_all(2, case), complaint)


def lose_colossal_ai(rank: int, size: int, case: WorldCase) -> RankResult:
    if rank == 1:
        colossal.VERSION = "0.5.1"
    return enter(rank, size, case)


def test_wrong_colossalai_on_one_machine_is_rejected_on_all(config: str, port: int) -> None:
    case = WorldCase(body=nothing, config=config, port=port, overrides=ONE_D)
    outcomes = run_world(2, lose_colossal_ai, case, open_group=False)
    refused(outcomes, "rank 1: Colossal-AI 0.5.0 is installed, 0.5.1 is needed; pip install")


def test_nccl_without_gpus_is_rejected(config: str, port: int) -> None:
    overrides = (*ONE_D, "backend=nccl")
    outcomes = enter_all(2, WorldCase(body=nothing, config=config, port=port, overrides=overrides))
    refused(outcomes, "backend='nccl' needs a GPU for each rank")


def test_port_in_use_is_rejected(config: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        case = WorldCase(body=nothing, config=config, port=port)
        outcome = enter_all(1, case)[0]
    assert outcome.error == "UserError"
    assert (
        outcome.said
        == f"port {port} is in use on this machine; choose another with MASTER_PORT or --port\n"
    )


def test_missing_network_interface_is_reported_once(config: str, port: int) -> None:
    """The second of two interfaces is missing; the check precedes gloo."""
    environ = {"GLOO_SOCKET_IFNAME": "lo,nowhere0"}
    case = WorldCase(body=nothing, config=config, port=port, overrides=ONE_D, environ=environ)
    outcomes = enter_all(2, case)
    assert [outcome.error for outcome in outcomes] == ["UserError", "UserError"]
    (line,) = "".join(outcome.said for outcome in outcomes).splitlines()
    assert line.startswith(
        "GLOO_SOCKET_IFNAME=lo,nowhere0 in the environment: this machine has no network interface "
        "nowhere0; there are: "
    )
    there = line.rpartition(": ")[2].split(", ")
    assert sorted(there) == sorted(name for _, name in socket.if_nameindex())


def test_missing_compiler_is_reported_before_the_model_is_built(config: str) -> None:
    case = WorldCase(
        body=nothing,
        config=config,
        port=0,
        overrides=("compile=True",),
        environ={"CXX": "no-such-compiler"},
    )
    (outcome,) = enter_all(1, case)
    assert outcome.error == "UserError"
    assert "compile=True needs a C++ compiler, and no-such-compiler, which CXX" in outcome.said
    assert len(outcome.said.splitlines()) == 1


def fail_to_compile(world: World) -> None:
    """Raise inductor's error for a compiler that runs, and headers that are missing."""
    from torch._inductor.exc import CppCompileError, InductorError

    output = "main.cpp:1:10: fatal error: Python.h: No such file\n 1 | #include <Python.h>\n"
    error = InductorError(CppCompileError(["g++", "main.cpp"], output), None)
    assert isinstance(world.control_plane.diagnose(error), RunError), (
        "status.json would have its raw text"
    )
    raise error


def test_failing_compiler_is_reported_in_one_line(config: str) -> None:
    (outcome,) = enter_all(1, WorldCase(body=fail_to_compile, config=config, port=0))
    assert outcome.error == "RunError"
    assert outcome.said == (
        "compile=True: g++ failed (main.cpp:1:10: fatal error: Python.h: No such file); "
        "compile=False runs without it\n"
    )


def test_unresolvable_host_of_rank_0_is_rejected(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "NAME_LOOKUP_SECONDS", 0.2)
    launch_info = LaunchInfo(rank=1, size=2, host="no-such.invalid", port=29500, launcher="by hand")
    with pytest.raises(UserError, match=r"rank 0, no-such\.invalid, does not resolve here"):
        rendezvous.rendezvous(launch_info, 60)


# Failures


def fail_on(world: World, rank: int) -> None:
    if world.rank == rank:
        raise ValueError("out of luck")
    world.axes["world"].all_reduce(torch.ones(1))


def fail_on_0(world: World) -> None:
    fail_on(world, 0)


def fail_on_2(world: World) -> None:
    fail_on(world, 2)


@pytest.mark.parametrize(("body", "rank"), [(fail_on_0, 0), (fail_on_2, 2)])
def test_failure_is_reported_once_by_the_rank_that_failed(
    config: str, port: int, body: Body, rank: int
) -> None:
    outcomes = enter_all(4, WorldCase(body=body, config=config, port=port, overrides=ONE_D))
    assert {outcome.error for outcome in outcomes} == {"RunError"}
    assert outcomes[rank].said.endswith(f"rank {rank}: failed: ValueError: out of luck\n")
    assert outcomes[rank].said.count("Traceback") == 1
    assert [outcome.said for outcome in outcomes if outcome is not outcomes[rank]] == ["", "", ""]


def fail_alike(world: World) -> None:
    raise RunError("the loss is NaN at step 3")


def test_error_on_all_ranks_is_reported_by_a_single_rank(config: str, port: int) -> None:
    case = WorldCase(body=fail_alike, config=config, port=port, overrides=ONE_D)
    said = [outcome.said for outcome in enter_all(2, case) if outcome.said]
    assert len(said) == 1
    assert said[0].endswith(": the loss is NaN at step 3\n")
    assert "Traceback" not in said[0]


def die_on_0(world: World) -> None:
    world.axes["world"].all_reduce(torch.ones(1))  # before it, other ranks may still open groups
    if world.rank == 0:
        os._exit(9)
    world.axes["world"].all_reduce(torch.ones(1))


def test_death_of_rank_0_is_reported(config: str, port: int) -> None:
    case = WorldCase(body=die_on_0, config=config, port=port, overrides=ONE_D)
    with pytest.raises(WorldError) as caught:
        enter_all(4, case)
    assert set(caught.value.failures) == {0}, caught.value


# Signals


def stop_before_the_first_step(world: World) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stop_after_the_first_agreement(world: World) -> bool:
    assert not world.poll_stop()
    world.barrier()
    if world.rank == 1:  # rank 0 may have reported the step already
        os.kill(os.getpid(), signal.SIGTERM)
    return world.poll_stop()


def test_sigterm_before_the_first_step_ends_the_run(config: str, port: int) -> None:
    case = WorldCase(body=stop_before_the_first_step, config=config, port=port, overrides=ONE_D)
    outcomes = enter_all(2, case)
    assert {outcome.error for outcome in outcomes} == {"RunError"}
    said = [outcome.said for outcome in outcomes if outcome.said]
    assert len(said) == 1
    assert said[0].endswith("stopped by SIGTERM\n")
    assert "Traceback" not in said[0]


def test_sigterm_after_the_first_agreement_only_sets_the_request(config: str, port: int) -> None:
    case = WorldCase(body=stop_after_the_first_agreement, config=config, port=port, overrides=ONE_D)
    outcomes = enter_all(2, case)
    assert [(o.result, o.error, o.said) for o in outcomes] == [(False, "", ""), (True, "", "")]
