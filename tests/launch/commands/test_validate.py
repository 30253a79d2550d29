"""cuboid validate on the command line: output, exit codes, and the number of calls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launch import cli

ROOT = Path(__file__).parents[3]
CONFIG = """
BATCH_SIZE = 6
SEQ_LEN = 32
NUM_MICRO_BATCHES = 2
TENSOR_PARALLEL = 4
MODE = '2d'
MAX_STEPS = 10
model = dict(n_layer=2, n_head=4, n_embd=64, vocab_size=1000)
data = dict(type='synthetic')
"""


WITH_A_WARNING = CONFIG.replace("SEQ_LEN = 32\n", "SEQ_LEN = 32\nTENSOR_SHAPE = (9, 9, 9)\n")


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "gpt.py").write_text(CONFIG)
    return str(tmp_path / "gpt.py")


def test_legal_config_is_reported_with_its_warnings(config, capsys):
    Path(config).write_text(WITH_A_WARNING)
    assert cli.main(["validate", config], {}) == 0
    out = capsys.readouterr().out
    assert "tensor 4 (2d: r=2 c=2) x pipeline 1 x data 1 = 4 processes" in out
    (warning,) = (line for line in out.splitlines() if line.startswith("warning: "))
    assert "gpt.py:4: TENSOR_SHAPE=(9, 9, 9)" in warning


def test_gpus_and_overrides_change_the_plan(config, capsys):
    assert cli.main(["validate", "--gpus", "8", config, "BATCH_SIZE=8"], {}) == 0
    assert "8 samples x data 2 x accumulation 1 = 16 samples" in capsys.readouterr().out


def test_config_reads_an_environment_variable(tmp_path, capsys):
    path = tmp_path / "gpt.py"
    path.write_text("import os\n" + CONFIG + "BATCH_SIZE = int(os.environ.get('B', '8'))\n")
    assert cli.main(["validate", str(path)], {"B": "12"}) == 0
    assert "12 samples x data 1" in capsys.readouterr().out


FROM_DATA = CONFIG.replace("vocab_size=1000", "vocab_size='data'")
TEXT = "data = dict(path='{folder}/text.txt', tokenizer='char')"


def inspected(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """Return the only config of ``cuboid validate --json``."""
    assert cli.main(["validate", "--json", *argv], {}) == 0
    (found,) = json.loads(capsys.readouterr().out)["configs"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("tokenizer", "text", "size"), [("char", "abcdefg\n" * 90, 8), ("gpt2", None, 50257)]
)
def test_vocabulary_from_the_data_is_found_without_a_run(tmp_path, capsys, tokenizer, text, size):
    """In the text of a file; the fixed size of a tokenizer is known without the file."""
    data = TEXT.format(folder=tmp_path).replace("char", tokenizer)
    path = tmp_path / "gpt.py"
    path.write_text(FROM_DATA.replace("data = dict(type='synthetic')", data))
    if text is not None:
        (tmp_path / "text.txt").write_text(text)
    cache = f"data.cache={tmp_path / 'cache'}"
    found = inspected(capsys, str(path), cache)
    assert found["plan"]["settings"]["model"]["vocab_size"] == size
    assert found["plan"]["undetermined"] == []
    same = inspected(capsys, str(path), cache, f"model.vocab_size={size}")
    assert found["estimate"] == same["estimate"]
    assert found["warnings"] == same["warnings"], "padding of the vocabulary among them"


def test_vocabulary_of_data_on_another_machine_is_reported_as_undetermined(tmp_path, capsys):
    path = tmp_path / "gpt.py"
    data = TEXT.format(folder=tmp_path)
    path.write_text(FROM_DATA.replace("data = dict(type='synthetic')", data))
    found = inspected(capsys, str(path))
    assert found["plan"]["undetermined"] == ["model.vocab_size"]
    (note,) = (note for note in found["notes"] if "vocab_size" in note)
    assert note.startswith(f"{path}:8: model.vocab_size='data' is not determined until the data")
    assert "text.txt' does not exist" in note
    assert note.endswith("parameters and memory are for 50,257 ids")


def test_vocabulary_of_data_without_a_tokenizer_is_rejected(tmp_path, capsys):
    path = tmp_path / "gpt.py"
    path.write_text(FROM_DATA)
    assert cli.main(["validate", str(path)], {}) == 2
    assert capsys.readouterr().err == (
        f"{path}:8: model.vocab_size='data' is the number of ids of a tokenizer, and "
        "data.type='synthetic' has none; set a number\n"
    )


def test_problems_are_lines_on_stderr_and_exit_code_2(config, capsys):
    overrides = ["TENSOR_PARALLEL=6", "foo=3", "optimizer.lr=-1"]
    assert cli.main(["validate", config, *overrides], {}) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 3
    assert "TENSOR_PARALLEL=6 is not a square" in captured.err


def test_missing_config_file_is_rejected(tmp_path, capsys):
    assert cli.main(["validate"], {}) == 2
    assert "cuboid validate FILE|FOLDER" in capsys.readouterr().err
    assert cli.main(["validate", str(tmp_path / "none.py")], {}) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_several_configs_have_a_line_each_and_all_their_problems(tmp_path, config, capsys):
    (tmp_path / "bad.py").write_text(CONFIG + "foo = 1\nbar = 2\n")
    (tmp_path / "worse.py").write_text("for i in range(3): pass\n")
    (tmp_path / "_base.py").write_text("a part of another config\n")
    Path(config).write_text(WITH_A_WARNING)
    assert cli.main(["validate", str(tmp_path), config], {}) == 2
    captured = capsys.readouterr()
    lines = [line.split()[:3] for line in captured.out.splitlines()[1:]]
    assert lines == [
        ["bad.py", "2", "problems"],
        ["gpt.py", "1", "warning"],
        ["worse.py", "1", "problem"],
    ]
    assert [line.split(": ")[0] for line in captured.err.splitlines()] == [
        f"{tmp_path}/bad.py:10",
        f"{tmp_path}/bad.py:11",
        f"{tmp_path}/worse.py:1:1",
    ]
    assert cli.main(["validate", config, "gpt_configs"], {}) == 0


def test_folder_without_configs_is_rejected(tmp_path, capsys):
    (tmp_path / "_base.py").touch()
    assert cli.main(["validate", str(tmp_path)], {}) == 2
    assert capsys.readouterr().err == f"{tmp_path}: the folder has no config (*.py)\n"


def taken(config: str, capsys: pytest.CaptureFixture[str]) -> int:
    """Return the bytes of the fullest GPU."""
    assert cli.main(["validate", config, "--json"], {}) == 0
    (found,) = json.loads(capsys.readouterr().out)["configs"]
    return int(found["estimate"]["memory"]["stages"][0]["bytes"]["total"])


def test_config_that_does_not_fit_is_rejected_with_alternatives(config, capsys):
    size = taken(config, capsys)
    fits, too_small = (f"{bytes / 1024:.3f}KiB" for bytes in (size + 1, size - 1))
    assert cli.main(["validate", config, "--gpu-memory", fits], {}) == 0
    assert capsys.readouterr().err == ""
    assert cli.main(["validate", config, "--gpu-memory", too_small], {}) == 2
    captured = capsys.readouterr()
    (problem,) = captured.err.splitlines()
    assert problem.startswith(f"{config}: the model needs ")
    rows = captured.out.split("what would fit")[1].splitlines()[2:]
    first = rows[0].split("  ")[0]
    assert problem.endswith(f" with {first}")
    memory = ["--gpu-memory", too_small]
    assert cli.main(["validate", config, *memory, *first.split()], {}) == 0


def test_modes_table_lists_overrides_that_reproduce_each_row(config, capsys):
    argv = ["validate", config, "--gpus", "8", "PIPELINE=2", "BATCH_SIZE=8", "--modes"]
    assert cli.main([*argv, "--json"], {}) == 0
    (found,) = json.loads(capsys.readouterr().out)["configs"]
    rows = found["estimate"]["modes"]
    layouts = [(row["mode"], row["tensor"], row["depth"], row["data"]) for row in rows]
    assert layouts == [
        ("serial", 1, 1, 4),
        ("1d", 2, 1, 2),
        ("1d", 4, 1, 1),
        ("2d", 4, 1, 1),
        ("2.5d", 2, 2, 2),
        ("2.5d", 4, 1, 1),
        ("2.5d", 4, 4, 1),
        ("sequence", 2, 1, 2),
        ("sequence", 4, 1, 1),
    ]
    (own,) = (row for row in rows if not row["overrides"])
    assert (own["mode"], own["sent"]) == (
        "2d",
        sum(sent["bytes"] for sent in found["estimate"]["sent"]),
    )
    for row in rows:
        again = ["validate", config, *argv[2:-1], *row["overrides"], "--json"]
        assert cli.main(again, {}) == 0
        (made,) = json.loads(capsys.readouterr().out)["configs"]
        stages = made["estimate"]["memory"]["stages"]
        assert row["bytes"] == max(stage["bytes"]["total"] for stage in stages)
        assert row["sent"] == sum(sent["bytes"] for sent in made["estimate"]["sent"])
        batch = made["plan"]["batch"]
        padded = batch["rows_per_micro_batch"]
        tokens = batch["per_micro_batch"] * made["plan"]["settings"]["seq_len"]
        assert row["padding"] == pytest.approx((padded - tokens) / padded)
        assert row["samples_per_step"] == batch["samples_per_step"] == 8
    assert cli.main(argv, {}) == 0
    table = capsys.readouterr().out.split("modes on 8 GPUs")[1].splitlines()
    assert sum("MODE=" in line or "as it is" in line for line in table) == len(rows)


def test_modes_have_at_least_the_samples_of_a_step(config, capsys):
    argv = ["validate", config, "--gpus", "4", "BATCH_SIZE=2", "NUM_MICRO_BATCHES=1", "--modes"]
    assert cli.main([*argv, "--json"], {}) == 0
    (found,) = json.loads(capsys.readouterr().out)["configs"]
    samples = {
        (row["mode"], row["tensor"]): row["samples_per_step"] for row in found["estimate"]["modes"]
    }
    assert (samples["serial", 1], samples["1d", 2], samples["2d", 4]) == (4, 2, 2)
    assert {row["padding"] for row in found["estimate"]["modes"]} == {0}, "samples are sharded"


def test_gpu_memory_without_a_unit_is_rejected(config, capsys):
    assert cli.main(["validate", config, "--gpu-memory", "80"], {}) == 2
    assert "'80' is not a size, such as 80GiB" in capsys.readouterr().err


def test_json_of_several_configs_has_their_problems_and_no_other_output(tmp_path, config, capsys):
    (tmp_path / "bad.py").write_text("foo = 1\n")
    assert cli.main(["validate", str(tmp_path), "--json"], {}) == 2
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)["configs"]
    assert [(Path(one["source"]).name, one["accepted"]) for one in found] == [
        ("bad.py", False),
        ("gpt.py", True),
    ]


def test_map_is_printed_and_written_as_svg(tmp_path, config, capsys):
    picture = tmp_path / "map.svg"
    argv = ["validate", config, "--map", "--map-svg", str(picture), "PIPELINE=2"]
    assert cli.main(argv, {}) == 0
    assert re.findall(r"stage \d", capsys.readouterr().out) == ["stage 0", "stage 1"]
    ids = re.findall(r'id="gpu-(\d+)"', picture.read_text(encoding="utf-8"))
    assert ids == [str(rank) for rank in range(8)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gpt.py", "gpt.py", "other.py", "--map"], "--map and --map-svg draw one config, not 2"),
        (
            ["gpt.py", "other.py", "--map-svg", "x.svg"],
            "--map and --map-svg draw one config, not 2",
        ),
        (
            ["gpt.py", "other.py", "--modes"],
            "--modes takes one config, not 2, unless --json is given",
        ),
        (["gpt.py", "--map", "--json"], "argument --json: not allowed with argument --map"),
        (
            ["gpt.py", "--map-svg", "a/x.png"],
            "a/x.png does not end in .svg, the only format; use a/x.svg",
        ),
        (["gpt.py", "--map-svg", "x.svg.gz"], "x.svg.gz does not end in .svg"),
        (
            ["gpt.py", "--map-svg", "none/x.svg"],
            "--map-svg: none/x.svg cannot be written: none does not exist",
        ),
        (["gpt.py", "--map", "--gpus", "4100"], "a map shows at most 4096 GPUs, not 4100"),
    ],
)
def test_conflicting_arguments_are_rejected(monkeypatch, config, capsys, argv, message):
    monkeypatch.chdir(Path(config).parent)
    Path("other.py").write_text(CONFIG)
    assert cli.main(["validate", *argv], {}) == 2
    assert message in capsys.readouterr().err


def test_validate_without_here_does_not_check_the_machine(tmp_path, monkeypatch, capsys):
    """Missing paths are warnings, and no file is written."""
    monkeypatch.chdir(tmp_path)
    text = CONFIG.replace("dict(type='synthetic')", "dict(path='none.txt', tokenizer='char')")
    nvme = "zero = dict(stage=3, offload='nvme', nvme_path='/none')\n"
    Path("gpt.py").write_text(text + nvme)
    before = set(tmp_path.rglob("*"))
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", None)
    assert cli.main(["validate", "gpt.py"], {}) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "does not exist" in line]
    assert len(warnings) == 2
    assert all(line.startswith("warning: gpt.py:") for line in warnings)
    assert set(tmp_path.rglob("*")) == before


def test_validate_here_rejects_a_config_that_the_machine_cannot_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("gpt.py").write_text(CONFIG + "zero = dict(stage=3, offload='nvme', nvme_path='disk')\n")
    argv = ["validate", "gpt.py", "--here", "--gpus", "4"]
    assert cli.main(argv, {"HOME": str(tmp_path)}) == 2
    assert "gpt.py:10: zero.nvme_path='disk': disk is not a folder" in capsys.readouterr().err
    Path("disk").mkdir()
    assert cli.main(argv, {"HOME": str(tmp_path)}) == 0
    message = capsys.readouterr().out.split("this machine")[1].splitlines()
    assert [line.split()[0] for line in message if line[:1].strip()][:4] == [
        *("GPUs", "memory", "data", "disk"),
    ]


def calls_of(*argv: str, allowed: Sequence[str] = ()) -> int:
    """Count the function calls of a cuboid command, imports included: its work, independent of the
    speed of the machine. Also checks that the command imports nothing heavy but ``allowed``."""
    absent = sorted({"torch", "numpy", "pandas", "transformers"} - {*allowed})
    code = (
        "import sys; from tests.support.call_count import counted\n"
        "with counted() as calls: from launch.cli import main; code = main(sys.argv[1:])\n"
        f"heavy = [name for name in {absent} if name in sys.modules]\n"
        "print(calls.number, file=sys.stderr)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1])


@pytest.mark.parametrize("more", [["--json"], ["--map"], ["--here"], ["--map-svg", os.devnull]])
def test_validate_does_not_import_torch(config, more):
    calls_of("validate", config, *more)


def test_gpt3_is_validated_with_few_calls():
    assert calls_of("validate", "gpt_configs/gpt3_pp1d.py", "--gpus", "128") < 3_000_000


def test_shipped_configs_are_validated_with_few_calls():
    """A vocabulary that is the data's is found with numpy."""
    assert calls_of("validate", "gpt_configs", allowed=["numpy"]) < 6_000_000


def test_code_in_a_config_is_not_executed(tmp_path, capsys):
    mark = tmp_path / "ran"
    path = tmp_path / "evil.py"
    attempts = [f"open({str(mark)!r}, 'w')", f"__import__('os').mkdir({str(mark)!r})"]
    for attempt in attempts:
        path.write_text(f"{CONFIG}seed = {attempt}\n")
        assert cli.main(["validate", str(path)], {}) == 2
        assert f"{path}:10:" in capsys.readouterr().err
    assert not mark.exists()
