"""A run that is killed repeatedly ends with the weights of an uninterrupted run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kill_campaign import AFTER_RENAME, BEFORE_RENAME, EVERY, Campaign, same_end

KINDS = ["kill", *BEFORE_RENAME, *AFTER_RENAME]


def campaigns(folder: Path, steps: int, seed: int = 0) -> tuple[Campaign, Campaign]:
    """Run a campaign without kills; return a campaign for kills, and the finished one."""
    uninterrupted = Campaign(folder / "uninterrupted", steps)
    uninterrupted.finish()
    return Campaign(folder / "killed", steps, seed), uninterrupted


def test_weights_after_five_kills_equal_those_of_a_run_without_kills(tmp_path: Path) -> None:
    killed, uninterrupted = campaigns(tmp_path, 21)
    for kind in ("kill", "kill-save", "kill-rename", "kill-prune", "kill-verify"):
        killed.kill_a_rank(kind)
    killed.finish()
    same_end(killed, uninterrupted)
    assert max(killed.lost) <= EVERY


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_weights_after_a_hundred_kills_equal_those_of_a_run_without_kills(tmp_path: Path) -> None:
    """The kills hit ranks at every point of a step and a save, synchronous and asynchronous, and
    torchrun."""
    killed, uninterrupted = campaigns(tmp_path, 500, seed=1)
    while len(killed.lost) < 100:
        asynchronous = killed.draw.random() < 0.3
        if killed.draw.random() < 0.1:
            killed.kill_torchrun()
        elif asynchronous:
            saves = "checkpoint.asynchronous=True"
            killed.kill_a_rank(killed.draw.choice(KINDS), saves, exact=False)
        else:
            killed.kill_a_rank(killed.draw.choice(KINDS))
        assert killed.latest < killed.steps
    killed.finish()
    same_end(killed, uninterrupted)
    print(
        f"{len(killed.lost)} kills, {sum(killed.lost)} repeated steps, "
        f"at most {max(killed.lost)} after a kill"
    )
