"""Warnings and notes about legal configs; illegal ones are in tests/bad_configs."""

from pathlib import Path

import pytest

from engine.config.run_rules import all_rules
from engine.errors import ConfigError
from engine.plan import Plan, make_plan
from models.parallel.registry import modes

BASE = "SEQ_LEN = 64\nMAX_STEPS = 9\nmodel = dict(n_layer=4, n_head=4, n_embd=64)\n"


def plan(tmp_path: Path, text: str, *, gpus: int | None = None) -> Plan:
    path = tmp_path / "config.py"
    path.write_text(text + BASE)
    return make_plan(path, gpus=gpus, environ={})


def messages(lines: tuple[str, ...], tmp_path: Path) -> list[str]:
    """Return the messages without their positions, which other tests check."""
    return [line.removeprefix(f"{tmp_path / 'config.py'}").partition(": ")[2] for line in lines]


def test_plain_config_has_no_warnings_or_notes(tmp_path: Path) -> None:
    checked = plan(tmp_path, "BATCH_SIZE = 8\n")
    assert (checked.warnings, checked.notes) == ((), ())


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            "BATCH_SIZE = 4\nPIPELINE = 4\nNUM_MICRO_BATCHES = 4\n",
            "NUM_MICRO_BATCHES=4 leaves the ranks of PIPELINE=4 idle for 43% of a step (the "
            "pipeline bubble); 12 would leave 20%",
        ),
        (  # 8 micro-batches in a step, then 16
            "BATCH_SIZE = 4\nGLOBAL_BATCH_SIZE = 8\nPIPELINE = 4\nNUM_MICRO_BATCHES = 4\n",
            "NUM_MICRO_BATCHES=4 with gradient_accumulation=2 (GLOBAL_BATCH_SIZE=8) leaves the "
            "ranks of PIPELINE=4 idle for 27% of a step (the pipeline bubble); 8 would leave 16%",
        ),
        (
            "BATCH_SIZE = 9\nPIPELINE = 3\nNUM_MICRO_BATCHES = 9\n",
            "model.n_layer=4 is not a multiple of PIPELINE=3 x model.num_chunks=1 = 3: model "
            "chunks have 1 or 2 layers, and the larger ones limit the speed; nearest: 3, 6",
        ),
        (
            "BATCH_SIZE = 8\nMODE = '2d'\nTENSOR_PARALLEL = 4\nTENSOR_SHAPE = (8, 64, 64)\n",
            "TENSOR_SHAPE=(8, 64, 64) differs from (4, 64, 32), the shape for BATCH_SIZE=8, "
            "NUM_MICRO_BATCHES=1, SEQ_LEN=64, model.n_embd=64, MODE='2d'; correct or "
            "remove it: it is only checked, never used",
        ),
        (
            "BATCH_SIZE = 8\ndata = dict(path='no/such/file.txt')\n",
            "data.path='no/such/file.txt' does not exist on this machine",
        ),
        (
            "BATCH_SIZE = 8\nzero = dict(stage=1, offload='nvme', nvme_path='no/disk')\n",
            "zero.nvme_path='no/disk' does not exist on this machine",
        ),
        (
            "BATCH_SIZE = 8\nzero = dict(stage=1, offload='nvme', nvme_path='.')\n"
            "checkpoint = dict(every=1, asynchronous=True)\n",
            "checkpoint.asynchronous=True copies the state offloaded by zero.offload='nvme' into "
            "host memory; if it does not fit, set checkpoint.asynchronous=False",
        ),
        (
            "BATCH_SIZE = 8\nlr_scheduler = dict(type='cosine', warmup=9)\n",
            "lr_scheduler.warmup=9 is not less than MAX_STEPS=9: the run ends before it reaches "
            "optimizer.lr=0.001; use a shorter warm-up",
        ),
    ],
)
def test_config_gives_its_warning(tmp_path: Path, text: str, warning: str) -> None:
    checked = plan(tmp_path, text)
    assert messages(checked.warnings, tmp_path) == [warning]


@pytest.mark.parametrize(
    ("mode", "size", "samples", "note"),
    [
        ("3d", 8, 1, "the 63 tokens of a micro-batch are padded to 64 rows, a multiple of 4, for "),
        (
            "2d",
            4,
            3,
            "the 189 tokens of a micro-batch are padded to 190 rows, a multiple of 2, for ",
        ),
        ("2d", 4, 2, None),
        ("1d", 2, 4, None),
    ],
)
def test_tokens_that_cannot_be_sharded_evenly_are_padded_by_a_few_rows(
    tmp_path: Path, mode: str, size: int, samples: int, note: str | None
) -> None:
    text = f"BATCH_SIZE = {samples}\nMODE = {mode!r}\nTENSOR_PARALLEL = {size}\n"
    path = tmp_path / "config.py"
    path.write_text(text + BASE.replace("SEQ_LEN = 64", "SEQ_LEN = 63"))
    checked = make_plan(path, gpus=None, environ={})
    batch = f"BATCH_SIZE={samples}, NUM_MICRO_BATCHES=1, SEQ_LEN=63: "
    cause = f"MODE={mode!r}, TENSOR_PARALLEL={size}"
    assert checked.warnings == ()
    notes = [line for line in messages(checked.notes, tmp_path) if "rows" in line]
    assert notes == ([f"{batch}{note}{cause}"] if note else [])


@pytest.mark.parametrize(
    "shape",
    [
        ("'1d'", 1, 4, "(8, 64, 64)"),
        ("'2d'", 1, 4, "(4, 64, 32)"),
        ("'2.5d'", 1, 4, "(4, 64, 32)"),
        ("'2.5d'", 2, 8, "(4, 64, 32)"),
        ("'sequence'", 1, 4, "(16, 8, 64)"),
        ("None", 1, 1, "(8, 64, 64)"),
    ],
)
def test_tensor_shape_by_colossal_ais_convention_is_accepted(
    tmp_path: Path, shape: tuple[str, int, int, str]
) -> None:
    mode, depth, size, stated = shape
    text = f"MODE = {mode}\nDEPTH = {depth}\nTENSOR_PARALLEL = {size}\nTENSOR_SHAPE = {stated}\n"
    assert plan(tmp_path, "BATCH_SIZE = 8\n" + text).warnings == ()


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            "BATCH_SIZE = 8\nMODE = '1d'\nTENSOR_PARALLEL = 4\n",
            "model.vocab_size=50257 is padded to 50260, a multiple of 4, for MODE='1d', "
            "TENSOR_PARALLEL=4",
        ),
        (
            "BATCH_SIZE = 8\nzero = dict(stage=2, offload='cpu')\n",
            "ZeRO stage 2 shards nothing on one data-parallel rank: only offloading saves memory",
        ),
        (
            "BATCH_SIZE = 8\nMODE = '2.5d'\nDEPTH = TENSOR_PARALLEL = 2\nzero = dict(stage=1)\n",
            "ZeRO stage 1 shards nothing on one data-parallel rank: no memory is saved; to shard "
            "over DEPTH=2, set zero.depth=True",
        ),
        (
            "BATCH_SIZE = 8\nMODE = 'sequence'\nTENSOR_PARALLEL = 4\nzero = dict(stage=1)\n",
            "ZeRO stage 1 shards nothing on one data-parallel rank: no memory is saved; to shard "
            "over TENSOR_PARALLEL=4, set zero.depth=True",
        ),
        (
            "BATCH_SIZE = 8\noptimizer = dict(type='sgd', eps=1e-6)\n",
            "optimizer.eps=1e-06 has no effect with optimizer.type='sgd'; it needs "
            "optimizer.type='adam' or 'adamw'",
        ),
        (
            "BATCH_SIZE = 8\nschedule = 'gpipe'\n",
            "schedule='gpipe' has no effect with PIPELINE=1; it needs PIPELINE of 2 or more",
        ),
        (
            "BATCH_SIZE = 8\nloss_scale = dict(initial=8.0)\n",
            "loss_scale.initial=8.0 has no effect with precision='float32'; it needs "
            "precision='fp16'",
        ),
    ],
)
def test_config_gives_its_note(tmp_path: Path, text: str, note: str) -> None:
    assert messages(plan(tmp_path, text).notes, tmp_path) == [note]


@pytest.mark.parametrize(
    ("mode", "size", "width", "padded"),
    [
        ("1d", 4, 250, "252, a multiple of 4"),
        ("2d", 4, 251, "252, a multiple of 2"),
        ("3d", 8, 251, "252, a multiple of 4"),
    ],
)
def test_width_of_the_mlp_is_padded_with_a_note(
    tmp_path: Path, mode: str, size: int, width: int, padded: str
) -> None:
    path = tmp_path / "config.py"
    cut = f"BATCH_SIZE = 8\nMODE = {mode!r}\nTENSOR_PARALLEL = {size}\n"
    path.write_text(
        cut + BASE.replace("n_embd=64", f"n_embd=64, n_inner={width}, vocab_size=50260")
    )
    assert messages(make_plan(path, gpus=None, environ={}).notes, tmp_path) == [
        f"model.n_inner={width} is padded to {padded}, for MODE={mode!r}, TENSOR_PARALLEL={size}"
    ]


@pytest.mark.parametrize(("stages", "chunks"), [(4, 1), (2, 2), (5, 1), (3, 2), (1, 4), (1, 5)])
def test_config_with_more_chunks_than_layers_is_rejected(
    tmp_path: Path, stages: int, chunks: int
) -> None:
    text = f"PIPELINE = {stages}\nBATCH_SIZE = 60\nNUM_MICRO_BATCHES = 60\n"
    path = tmp_path / "config.py"
    path.write_text(text + BASE + f"model['num_chunks'] = {chunks}\n")
    if stages * chunks <= 4 or stages == 1:
        assert make_plan(path, gpus=None, environ={}).layout.pipeline == stages
    else:
        with pytest.raises(ConfigError, match="number of model chunks; use at most 4 chunks"):
            make_plan(path, gpus=None, environ={})


def test_zero_stage_3_in_a_pipeline_is_noted(tmp_path: Path) -> None:
    text = "BATCH_SIZE = 8\nPIPELINE = 2\nNUM_MICRO_BATCHES = 8\nzero = dict(stage=3)\n"
    assert messages(plan(tmp_path, text, gpus=4).notes, tmp_path) == [
        "ZeRO stage 3 with PIPELINE=2 gathers the parameters twice per micro-batch, 16 times with "
        "NUM_MICRO_BATCHES=8; stage 2 gathers them once per step"
    ]
    assert plan(tmp_path, text.replace("3)", "2)"), gpus=4).notes == ()


@pytest.mark.parametrize("gpus", [1, 2, 3, 5, 7])
def test_gpus_for_no_whole_number_of_model_copies_are_rejected(tmp_path: Path, gpus: int) -> None:
    text = "MODE = '1d'\nTENSOR_PARALLEL = 2\nPIPELINE = 2\nBATCH_SIZE = 8\nNUM_MICRO_BATCHES = 8\n"
    nearest = {1: "4", 2: "4", 3: "4", 5: "4, 8", 7: "4, 8"}[gpus]
    with pytest.raises(ConfigError) as error:
        plan(tmp_path, text, gpus=gpus)
    assert str(error.value) == (
        f"{tmp_path / 'config.py'}:2: {gpus} GPUs are not a multiple of 4, one copy of the model "
        f"(TENSOR_PARALLEL=2 x PIPELINE=2); nearest: {nearest}"
    )


@pytest.mark.parametrize("gpus", [4, 8, 12])
def test_data_parallelism_is_derived(tmp_path: Path, gpus: int) -> None:
    text = "MODE = '1d'\nTENSOR_PARALLEL = 2\nPIPELINE = 2\nBATCH_SIZE = 8\nNUM_MICRO_BATCHES = 8\n"
    assert plan(tmp_path, text, gpus=gpus).layout.data == gpus // 4


@pytest.mark.parametrize("mode", modes())
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_size_is_legal_exactly_if_the_mode_has_axes_of_this_size(
    tmp_path: Path, mode: str, depth: int
) -> None:
    path = tmp_path / "config.py"
    for size in range(1, 29):
        width = 72 * size  # a multiple of every edge there is
        path.write_text(
            f"MODE = {mode!r}\nTENSOR_PARALLEL = {size}\nDEPTH = {depth}\nBATCH_SIZE = {size}\n"
            "SEQ_LEN = 64\nMAX_STEPS = 9\n"
            f"model = dict(n_layer=1, n_head={width}, n_embd={width})\n"
        )
        legal = modes()[mode].axes(size, depth) is not None
        if legal and (depth == 1 or modes()[mode].uses_depth):
            assert make_plan(path, gpus=None, environ={}).layout.gpus == size
        else:
            with pytest.raises(ConfigError):
                make_plan(path, gpus=None, environ={})


def test_every_rule_has_a_docstring_and_a_unique_name() -> None:
    every = all_rules()
    assert len({rule.__name__ for rule in every}) == len(every)
    assert all(rule.__doc__ for rule in every)
