"""Names of runs that are made from their settings."""

from __future__ import annotations

from pathlib import Path

from engine.plan import make_plan
from engine.runs.folder import claim_folder, list_runs
from engine.runs.run_name import run_name
from engine.runs.start_candidates import StartOptions
from tests.support.jobs import TINY, Job, run

CONFIGS = Path(__file__).parents[3] / "gpt_configs"


def test_automatic_name_has_the_main_settings() -> None:
    path = CONFIGS / "languini_6h.py"
    named = [
        run_name(make_plan(path, gpus=gpus, overrides=overrides, environ={}))
        for gpus, overrides in (
            (1, []),
            (1, ["log.name=auto"]),
            (8, ["log.name=auto", "TENSOR_PARALLEL=2", "MODE=1d", "PIPELINE=2", "zero.stage=1"]),
        )
    ]
    model = "languini_6h--l12-w768-mlp3072-h12x64-books_16384-batch128-seq512"
    rate = "adam-lr0.0006-cosine_from_start-to6e-06-steps18265"
    assert named == [
        "languini_6h",
        f"{model}-{rate}-fp16-seed0",
        f"{model}-{rate}-1dx2-pp2-dp2-zero1-fp16-seed0",
    ]


def test_runs_of_a_config_are_listed_with_and_without_settings_in_their_names(
    tmp_path: Path,
) -> None:
    names = ("demo", "demo--l2-w8", "demo_2", "other--demo")
    folders = [claim_folder(name, name, root=tmp_path).path.name for name in names]
    found = [folder.path.name for folder in list_runs(tmp_path, "demo")]
    assert sorted(found) == sorted(folders[:2])


def test_automatic_name_is_resumed_by_its_config_with_other_settings(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    for steps, rate, resume in ((2, 0.01, "none"), (3, 0.02, "auto")):
        overrides = ("log.name=auto", f"MAX_STEPS={steps}", f"optimizer.lr={rate}")
        options = StartOptions(output=None, resume=resume, new_data=False)
        job = Job(folder=tmp_path, overrides=(*overrides, "checkpoint.every=1"), options=options)
        (ended,) = run(job)
        assert ended.error == "", ended.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("tiny--l")
    assert "-lr0.01-" in folder.name
    assert len((folder / "log.jsonl").read_text().splitlines()) == 3
