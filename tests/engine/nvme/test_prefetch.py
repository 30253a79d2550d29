"""Prefetch buffers: the order of reads and writes, and memory."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engine.nvme.page_buffers import PAGE, Buffer
from engine.nvme.prefetch import BUFFERS, PrefetchBuffers


class DelayedSource:
    """A storage that transfers bytes at the last moment: in ``wait``."""

    def __init__(self) -> None:
        self.contents: dict[int, bytes] = {}
        self.begun: list[tuple[str, int, Buffer]] = []
        self.events: list[tuple[str, int]] = []

    def take(self, group: int, buffer: Buffer) -> None:
        assert all(other is not buffer for _, _, other in self.begun), "memory is in use"
        assert all(other != group for _, other, _ in self.begun), "it is on its way"
        if group in self.contents:
            self.begun.append(("read", group, buffer))
            self.events.append(("read", group))
            buffer.tensor(0, PAGE).fill_(255)  # whoever does not wait finds this

    def put(self, group: int, buffer: Buffer) -> None:
        assert all(other is not buffer for _, _, other in self.begun), "memory is in use"
        assert all(other != group for _, other, _ in self.begun), "it is on its way"
        self.begun.append(("write", group, buffer))
        self.events.append(("write", group))

    def wait(self) -> None:
        for verb, group, buffer in self.begun:
            memory = buffer.tensor(0, PAGE)
            if verb == "write":
                self.contents[group] = bytes(memory.tolist())
            else:
                memory.copy_(memory.new_tensor(list(self.contents[group])))
        self.begun = []


@pytest.mark.parametrize("groups", [0, 1, 2, 3, 4, 5, 7])
def test_changes_of_every_group_are_written_back(groups: int) -> None:
    disk = DelayedSource()
    stream = PrefetchBuffers([disk], groups, PAGE)
    for turn in range(4):
        order = []
        for group, buffer in stream:
            order.append(group)
            memory = buffer.tensor(0, PAGE)
            if turn:
                assert memory.eq(10 * turn - 10 + group).all()
            memory.fill_(10 * turn + group)
        assert order == list(range(groups))
        for group in range(groups) if turn == 2 else ():
            assert stream.fetch(group).tensor(0, PAGE).eq(10 * turn + group).all()


def test_during_an_update_the_next_group_is_read_and_the_last_is_written() -> None:
    disk = DelayedSource()
    stream = PrefetchBuffers([disk], 6, PAGE)
    for turn in range(3):
        for group, _ in stream:
            under_way = {(verb, number) for verb, number, _ in disk.begun}
            expected = {("write", group - 1)} if group else set()
            if turn:
                expected |= {("read", group + 1)} if group < 5 else set()
            assert under_way == expected
        assert {(verb, number) for verb, number, _ in disk.begun} == {("write", 5), ("read", 0)}
    events = disk.events[6 + 1 :]  # after the first turn, which finds nothing to read
    assert all(one != two for one, two in pairwise(events))
    assert len(events) == 2 * 2 * 6


def test_memory_is_bounded_by_the_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make(size: int) -> Buffer:
        made.append(size)
        return Buffer(size)

    monkeypatch.setattr("engine.nvme.prefetch.Buffer", make)
    stream = PrefetchBuffers([DelayedSource()], 9, PAGE)
    for _ in range(2):
        for _ in stream:
            pass
    assert made == [PAGE] * BUFFERS


def test_an_interrupted_iteration_loses_no_data() -> None:
    stream = PrefetchBuffers([DelayedSource()], 5, PAGE)
    for group, buffer in stream:
        buffer.tensor(0, PAGE).fill_(group)
    for group, buffer in stream:
        buffer.tensor(0, PAGE).fill_(100 + group)
        if group == 2:
            break
    found = [int(buffer.tensor(0, 1)) for _, buffer in stream]
    assert found == [100, 101, 102, 3, 4]
