"""Plans: of the shipped configs, derived values, and the cost of making one."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.plan import Plan, make_plan
from engine.unsupported import unsupported_settings
from models.parameters import parameter_count
from models.presets import PRESETS
from tests.support.offloading import STATISTICS_ON_DISK

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "gpt_configs").glob("*.py"))
# config -> (GPUs it is meant for, data, pipeline, tensor, samples of a step, ZeRO, offload)
MEANT = {
    "demo": (4, 1, 1, 4, 32, 0, None),
    "languini_6h": (1, 1, 1, 1, 128, 0, None),
    "languini_12h": (1, 1, 1, 1, 128, 0, None),
    "languini_24h": (1, 1, 1, 1, 256, 0, None),
    "languini_48h": (1, 1, 1, 1, 256, 0, None),
    "languini_96h": (1, 1, 1, 1, 256, 0, None),
    "image_dp": (8, 8, 1, 1, 64, 0, None),
    "image_ddp": (8, 8, 1, 1, 72, 0, None),
    "image_tp": (8, 1, 1, 8, 400, 0, None),
    "image_tp_amp": (8, 1, 1, 8, 400, 0, None),
    "image_tp_zero": (8, 2, 1, 4, 400, 1, None),
    "image_digits": (1, 1, 1, 1, 32, 0, None),
    "chars_ddp": (2, 2, 1, 1, 432, 0, None),
    "chars_fsdp": (2, 2, 1, 1, 432, 3, None),
    "chars_fsdp_offload": (2, 2, 1, 1, 432, 3, "cpu"),
    "billions_1b7": (8, 8, 1, 1, 8, 3, "cpu"),
    "billions_10b": (8, 8, 1, 1, 8, 3, "cpu"),
    "billions_20b": (8, 8, 1, 1, 8, 3, "cpu"),
    "billions_45b": (8, 8, 1, 1, 8, 3, "cpu"),
    "gpt2_1d": (2, 1, 1, 2, 1, 0, None),
    "gpt2_2d": (4, 1, 1, 4, 1, 0, None),
    "gpt2_2p5d": (2, 1, 1, 2, 1, 0, None),
    "gpt2_2p5d_8": (8, 1, 1, 8, 1, 0, None),
    "gpt2_3d": (8, 1, 1, 8, 1, 0, None),
    "long_2d": (4, 1, 1, 4, 1, 0, None),
    "long_sequence": (8, 1, 1, 8, 1, 1, None),
    "gpt2_nvme": (1, 1, 1, 1, 1, 3, "nvme"),
    "gpt2_pp": (2, 1, 2, 1, 1, 0, None),
    "gpt2_pp1d": (8, 2, 2, 2, 16, 0, None),
    "gpt2_vanilla": (1, 1, 1, 1, 1, 0, None),
    "gpt2_zero2": (1, 1, 1, 1, 1, 2, "cpu"),
    "gpt2_zero3": (1, 1, 1, 1, 1, 3, "cpu"),
    "gpt2_zero3_pp1d": (8, 2, 2, 2, 16, 3, "cpu"),
    "gpt3_pp1d": (128, 1, 32, 4, 192, 0, None),
    "gpt3_pp1d_min": (96, 1, 24, 4, 192, 0, None),
    "gpt3_pp2d": (96, 1, 24, 4, 96, 0, None),
    "gpt3_pp2p5d": (96, 1, 24, 4, 96, 0, None),
    "gpt3_zero3": (96, 96, 1, 1, 192, 3, None),
    "gpt3_zero3_min": (64, 64, 1, 1, 192, 3, None),
}
SYNTHETIC = "data.type=synthetic"
BASE = "BATCH_SIZE = 8\nSEQ_LEN = 64\nMAX_STEPS = 9\nmodel = dict(n_layer=4, n_head=4, n_embd=64)\n"


def plan(tmp_path: Path, text: str, *overrides: str, gpus: int | None = None) -> Plan:
    path = tmp_path / "config.py"
    path.write_text(text + BASE)
    return make_plan(path, gpus=gpus, overrides=overrides, environ={})


def test_every_shipped_config_is_tested() -> None:
    assert {path.stem for path in CONFIGS} == MEANT.keys()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_gives_its_plan(path: Path) -> None:
    gpus, data, pipeline, tensor, samples, stage, offload = MEANT[path.stem]
    found = make_plan(path, gpus=gpus, environ={})
    layout, settings = found.layout, found.settings
    assert (layout.data, layout.pipeline, layout.tensor) == (data, pipeline, tensor)
    assert found.global_batch == samples
    assert (settings.zero.stage, settings.zero.offload) == (stage, offload)
    if path.stem.startswith("gpt"):
        gpt3 = path.stem.startswith("gpt3")
        assert settings.precision == "fp16"
        assert settings.model.checkpoint is True
        assert settings.num_epochs == 60
        assert settings.seq_len == (2048 if gpt3 else 1024)
        assert parameter_count(settings.model) == (174_604_259_328 if gpt3 else 124_439_808)


@pytest.mark.parametrize("name", ["vanilla", "1d", "2d", "2p5d", "3d"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_override_takes_precedence_over_an_alias_in_the_config(name: str, precision: str) -> None:
    path = ROOT / "gpt_configs" / f"gpt2_{name}.py"
    found = make_plan(path, gpus=None, overrides=[f"precision={precision}"], environ={})
    assert found.settings.precision == precision


@pytest.mark.parametrize(
    "override",
    ["PIPELINE=2", "zero.stage=1", "precision=fp16", "checkpoint.every=100", "compile=True"],
)
def test_formerly_unsupported_settings_are_supported(tmp_path: Path, override: str) -> None:
    assert unsupported_settings(plan(tmp_path, "", override, "NUM_MICRO_BATCHES=8")) == []


def test_statistics_are_rejected_only_with_weights_on_a_disk(tmp_path: Path) -> None:
    *states, weights = STATISTICS_ON_DISK
    assert unsupported_settings(plan(tmp_path, "", *states)) == []
    (found,) = unsupported_settings(plan(tmp_path, "", *states, weights))
    assert found.startswith("command line: log.statistics=2 passes `cuboid validate`, but cannot ")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2_small", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
        ("gpt2", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_parameter_counts(tmp_path: Path, name: str, count: int) -> None:
    found = plan(tmp_path, "", f"model={{'type': {name!r}}}")
    assert parameter_count(found.settings.model) == count


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_a_plan(tmp_path: Path, name: str) -> None:
    model = plan(tmp_path, "", f"model={{'type': {name!r}}}", SYNTHETIC).settings.model
    if not name.startswith("languini"):
        assert model.n_head * model.head_dim == model.n_embd
        assert model.tie_embeddings
    assert model.n_inner == 4 * model.n_embd


@pytest.mark.parametrize(
    ("name", "count", "without_tables"),
    [
        ("mini", 27_549_696, 10_772_480),
        ("tiny", 53_912_064, 28_746_240),
        ("small", 110_615_040, 85_449_216),
        ("medium", 336_390_144, 302_835_712),
        ("large", 731_077_632, 680_745_984),
        ("xl", 1_478_160_384, 1_411_051_520),
    ],
)
def test_languini_presets_have_the_published_parameter_counts(
    tmp_path: Path, name: str, count: int, without_tables: int
) -> None:
    overrides = f"model={{'type': 'languini-{name}'}}", "SEQ_LEN=512", SYNTHETIC
    model = plan(tmp_path, "", *overrides).settings.model
    assert parameter_count(model) == count
    assert parameter_count(model) - 2 * 16_384 * model.n_embd == without_tables
    assert (model.tie_embeddings, model.init_residual, model.scale_embedding) == (
        False,
        "mlp",
        True,
    )
    assert model.activation == "gelu_tanh"


def test_plan_has_the_batch_sizes_of_its_settings(tmp_path: Path) -> None:
    text = "NUM_MICRO_BATCHES = 2\nMODE = '3d'\nTENSOR_PARALLEL = 27\ngradient_accumulation = 3\n"
    found = plan(
        tmp_path,
        text,
        "BATCH_SIZE=4",
        "model={'type': 'gpt-mini', 'n_head': 9, 'n_embd': 216}",
        gpus=54,
    )
    assert (found.micro_batch, found.row_order.rows) == (2, 135)
    assert found.global_batch == 4 * 2 * 3
    assert found.tokens_per_step == 24 * 64


def test_fingerprint_depends_on_the_settings_only(tmp_path: Path) -> None:
    one = plan(tmp_path, "")
    (tmp_path / "elsewhere").mkdir()
    same = plan(tmp_path / "elsewhere", "# another path and other lines\nNUM_MICRO_BATCHES = 1\n")
    assert one.fingerprint == same.fingerprint
    others = [plan(tmp_path, "", override) for override in ("seed=1", "optimizer.lr=2e-3")]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_plan_cites_settings_as_written(tmp_path: Path) -> None:
    found = plan(tmp_path, "parallel = dict(\n    tensor=dict(size=2, mode='1d'))\n")
    path = tmp_path / "config.py"
    assert found.cite("tensor_parallel") == f"{path}:2: parallel.tensor.size=2"
    assert found.cite("data.path") == f"{path}: data.path=None"


def test_resolved_settings_are_json(tmp_path: Path) -> None:
    found = plan(tmp_path, "")
    again = type(found.settings).model_validate_json(found.settings.model_dump_json())
    assert again == found.settings


def test_missing_config_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        make_plan(tmp_path / "none.py", gpus=None, environ={})


def test_planning_is_cheap_and_imports_no_heavy_package() -> None:
    code = (
        "import sys\n"
        "from tests.support.call_count import counted\n"
        "with counted() as calls:\n"
        "    from engine.plan import make_plan\n"
        "    for path in sys.argv[1:]: make_plan(path, gpus=None, environ={})\n"
        "heavy = {'torch', 'numpy', 'pandas', 'transformers', 'colossalai', 'rich'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
        "print(calls.number)\n"
    )
    command = [sys.executable, "-c", code, *map(str, CONFIGS)]
    run = subprocess.run(command, capture_output=True, cwd=ROOT)
    assert run.stderr == b""
    assert int(run.stdout) < 1_500_000
