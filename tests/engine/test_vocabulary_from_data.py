"""model.vocab_size='data': the size of the tokenizer, found before a model is built and kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.checkpoint.load import SavedCheckpoint
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import evaluation_plan_of_run, plan_of_run, recorded_settings
from engine.runs.start_candidates import StartOptions
from tests.support.jobs import RUN, TINY, Ended, Job, checkpoints_of, run, without_sample

TEXT = "a quick brown fox jumps over the lazy dog; " * 40
CONFIG = TINY.replace("vocab_size=33", "vocab_size='data'").replace(
    'data = dict(type="synthetic")', 'data = dict(path="text.txt", tokenizer="char")'
)


def train(folder: Path, *overrides: str, ranks: int = 1, **options: object) -> list[Ended]:
    options = {"output": RUN, **options}
    job = Job(
        folder=folder,
        overrides=overrides,
        options=StartOptions(**options),  # type: ignore[arg-type]
        planted=without_sample,
    )
    return run(job, ranks)


def vocabulary(folder: Path, path: Path = RUN) -> int:
    return recorded_settings(RunFolder(folder / path)).model.vocab_size


def rows(folder: Path, path: Path = RUN) -> int:
    """Return the rows of the saved token embedding."""
    return len(newest(folder, path).parameter("wte.weight"))


def newest(folder: Path, path: Path = RUN) -> SavedCheckpoint:
    checkpoints = checkpoints_of(folder, path)
    return SavedCheckpoint(checkpoints.folder(checkpoints.steps()[-1]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two tensor-parallel ranks, which shard the vocabulary."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "tiny.py").write_text(CONFIG)
    (folder / "text.txt").write_text(TEXT)
    ended = train(folder, "TENSOR_PARALLEL=2", "MODE=1d", ranks=2)
    assert [one.error for one in ended] == ["", ""], ended[0].err
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_the_size_of_the_tokenizer_is_used_and_recorded(trained: Path) -> None:
    size = len(set(TEXT))
    assert vocabulary(trained) == rows(trained) == size
    assert newest(trained).training.settings["model"]["vocab_size"] == size
    statements = json.loads((trained / RUN / "statements.json").read_bytes())["statements"]
    assert statements["model.vocab_size"]["value"] == size
    run_folder = RunFolder(trained / RUN)
    for plan in (plan_of_run(run_folder, gpus=2), evaluation_plan_of_run(run_folder, gpus=2)):
        assert (plan.settings.model.vocab_size, plan.undetermined) == (size, frozenset())
        assert plan.cite("model.vocab_size").endswith(f"model.vocab_size='data' ({size} ids)")


def test_a_resume_uses_the_recorded_size(folder: Path) -> None:
    """In another layout, on a text with fewer characters."""
    size = vocabulary(folder)
    (folder / "text.txt").write_text("a lazy dog; " * 100)
    (ended,) = train(folder, "MAX_STEPS=6", resume=str(RUN), output=None, new_data=True)
    assert ended.error == "", ended.err
    assert "resuming from" in ended.out
    assert vocabulary(folder) == rows(folder) == size


def test_a_resume_on_a_text_with_new_characters_is_rejected(folder: Path) -> None:
    (folder / "text.txt").write_text(TEXT + "0123")
    (ended,) = train(folder, "MAX_STEPS=6", resume=str(RUN), output=None, new_data=True)
    assert ended.error == "UserError"
    size = len(set(TEXT))
    assert f"is too small for {size + 4} tokens" in ended.err
    assert "--init-from" in ended.err


def test_initial_weights_keep_their_ids_and_get_the_new_ones(folder: Path) -> None:
    (folder / "text.txt").write_text("0 lazy dogs " * 100)
    other = Path("other")
    (ended,) = train(folder, init_from=folder / RUN, output=other)
    assert ended.error == "", ended.err
    size = len(set(TEXT)) + 1
    assert vocabulary(folder, other) == rows(folder, other) == size
    assert f"new token in the data: '0' gets id {size - 1}" in ended.out
