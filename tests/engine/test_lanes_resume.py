"""A run on lanes: a resume may change the layout, and another global batch is other data."""

from __future__ import annotations

import shutil
from pathlib import Path

from engine.runs.start_candidates import StartOptions
from tests.support.books import write_books
from tests.support.jobs import RUN, TINY, Job, run, run_all


def job(folder: Path, *overrides: str, resume: str = "none", new_data: bool = False) -> Job:
    lanes = ("data.type=lanes", "data.path=data/vocabulary", "data.tokenizer=bytes")
    options = StartOptions(resume=resume, output=RUN, new_data=new_data)
    sizes = ("model.vocab_size=257", "data.validation=0", *overrides)
    return Job(folder=folder, overrides=(*lanes, *sizes), options=options)


def test_resume_with_another_global_batch_needs_allow_new_data(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    write_books(tmp_path / "data", {"train": [[60 + n, 100, 101] * 9 for n in range(9)]})
    whole = run(job(tmp_path, "MAX_STEPS=4", "checkpoint.every=2"))[0]
    assert whole.error == ""
    kept, refused, allowed = run_all(
        [
            job(copy(tmp_path, name), *overrides, resume="auto", new_data=name == "allowed")
            for name, overrides in (
                ("kept", ("MAX_STEPS=5", "BATCH_SIZE=2", "gradient_accumulation=2")),
                ("refused", ("MAX_STEPS=5", "BATCH_SIZE=3")),
                ("allowed", ("MAX_STEPS=5", "BATCH_SIZE=3")),
            )
        ]
    )
    assert kept[0].error == ""
    assert "was trained on different data or in a different sample order" in refused[0].err
    assert "3 samples per step, 4 at the checkpoint; BATCH_SIZE=4 restores 4" in refused[0].err
    assert refused[0].err.splitlines()[-1] == "pass --allow-new-data to resume anyway"
    assert allowed[0].error == ""
    assert allowed[0].out.count("3 samples per step, 4 at the checkpoint") == 1
    assert list(allowed[0].batches) == [5]


def copy(folder: Path, name: str) -> Path:
    """Copy the run and its data into a new folder."""
    new = folder / name
    new.mkdir()
    for part in ("tiny.py", "data", str(RUN)):
        if (folder / part).is_dir():
            shutil.copytree(folder / part, new / part)
        else:
            shutil.copy(folder / part, new / part)
    return new
