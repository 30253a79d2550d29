"""A run that is killed over and over ends with the weights of one that was left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kill_campaign import AFTER_IT, BEFORE_ITS_NAME, EVERY, Campaign, same_end

KINDS = ["kill", *BEFORE_ITS_NAME, *AFTER_IT]


def campaigns(folder: Path, steps: int, seed: int = 0) -> tuple[Campaign, Campaign]:
    """One that is to be killed, and one that was not."""
    alone = Campaign(folder / "alone", steps)
    alone.finish()
    return Campaign(folder / "killed", steps, seed), alone


def test_weights_after_five_kills_equal_those_of_a_run_without_kills(tmp_path: Path) -> None:
    killed, alone = campaigns(tmp_path, 21)
    for kind in ("kill", "kill-save", "kill-rename", "kill-prune", "kill-verify"):
        killed.kill_a_rank(kind)
    killed.finish()
    same_end(killed, alone)
    assert max(killed.lost) <= EVERY


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_weights_after_a_hundred_kills_equal_those_of_a_run_without_kills(tmp_path: Path) -> None:
    """Ranks at every place, of runs that save in their steps or beside them; and torchrun."""
    killed, alone = campaigns(tmp_path, 500, seed=1)
    while len(killed.lost) < 100:
        beside = killed.draw.random() < 0.3
        if killed.draw.random() < 0.1:
            killed.kill_torchrun()
        elif beside:
            saves = "checkpoint.asynchronous=True"
            killed.kill_a_rank(killed.draw.choice(KINDS), saves, exact=False)
        else:
            killed.kill_a_rank(killed.draw.choice(KINDS))
        assert killed.latest < killed.steps
    killed.finish()
    same_end(killed, alone)
    print(f"{len(killed.lost)} kills, {sum(killed.lost)} steps done again, most {max(killed.lost)}")
