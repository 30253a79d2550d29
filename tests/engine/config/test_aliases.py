"""Aliases: every spelling sets the same setting, and ignored keys are noted with the reason."""

from operator import attrgetter
from pathlib import Path

import pytest

from engine.config.aliases import ALIASES
from engine.config.ignored_keys import IGNORED_KEYS
from engine.config.schema import all_settings, user_name
from engine.errors import ConfigError
from engine.plan import Plan, make_plan

FOREIGN = sorted((Path(__file__).parents[2] / "foreign_configs").glob("*.py"))
IMPORTS = (
    "import torch\n"
    "from colossalai.amp import AMP_TYPE\n"
    "from colossalai.nn.lr_scheduler import CosineAnnealingWarmupLR, LinearWarmupLR\n"
    "from colossalai.nn.optimizer import CPUAdam, FusedAdam, HybridAdam\n"
    "from colossalai.zero.shard_utils import BucketTensorShardStrategy, TensorShardStrategy\n"
    "from deepspeed.ops.adam import DeepSpeedCPUAdam\n"
    "from model import GPT2_exlarge_pipeline_1D, GPT2_small_pipeline_hybrid, GPT3_pipeline_1D\n"
    "from model_zoo.gpt import gpt\n"
    "from model_zoo.gpt.gpt import GPTLMLoss\n"
    "from titans.loss.vocab_cross_entropy import vocab_parallel_cross_entropy\n"
    "from titans.model.gpt import GPT, gpt2_large, gpt2_small, gpt3\n"
    "from torch.optim import SGD, Adam, AdamW\n"
)
REST = "BATCH_SIZE = 8\nSEQ_LEN = 64\nMAX_STEPS = 9\n"
MODEL = "model = dict(n_layer=4, n_head=4, n_embd=64)\n"

CASES = [
    # layout
    ("parallel = dict(pipeline=2)", "pipeline", 2),
    ("parallel = dict(pipeline=dict(size=2))", "pipeline", 2),
    ("parallel = dict(tensor=4)\nMODE = '1d'", "tensor_parallel", 4),
    ("parallel = dict(pipeline=1, tensor=dict(size=4, mode='2d'))", "mode", "2d"),
    ("parallel = dict(tensor=dict(size=2, mode='2.5d', depth=2))", "depth", 2),
    ("parallel = dict(tensor=dict(size=4, mode='sequence'))", "mode", "sequence"),
    ("parallel = dict(tensor=dict(size=1, mode=None))", "mode", "serial"),
    ("parallel = None", "tensor_parallel", 1),
    ("MODE = None", "mode", "serial"),
    ("HIDDEN_SIZE = 64", "hidden_size", 64),
    ("TENSOR_SHAPE = (8, 64, 64)", "tensor_shape", (8, 64, 64)),
    ("TENSOR_SHAPE = [8, 64, 64]", "tensor_shape", (8, 64, 64)),
    # the model
    ("model['max_position_embeddings'] = 128", "model.block_size", 128),
    ("model['mlp_ratio'] = 2.0", "model.n_inner", 128),
    ("model['dropout'] = 0.1", "model.resid_pdrop", 0.1),
    ("model['attention_dropout'] = 0.1", "model.attn_pdrop", 0.1),
    ("model['embedding_dropout'] = 0.1", "model.embd_pdrop", 0.1),
    ("model['layernorm_epsilon'] = 1e-6", "model.layer_norm_epsilon", 1e-6),
    ("model['activation'] = torch.nn.functional.gelu", "model.activation", "gelu"),
    ("model['dtype'] = torch.half", "precision", "fp16"),
    ("model['dtype'] = torch.bfloat16", "precision", "bf16"),
    ("model['dtype'] = torch.float\nprecision = 'bf16'", "precision", "bf16"),
    ("model = dict(type=gpt2_small)", "model.n_embd", 768),
    ("model = dict(type='gpt2_small', n_layer=2)", "model.n_layer", 2),
    ("model = dict(type='gpt2_small')", "model.block_size", 1024),
    ("model = dict(type='gpt-nano')", "model.block_size", 64),
    ("model = dict(type=gpt.gpt2_8B)", "model.n_layer", 72),
    ("model = dict(type=gpt3)", "model.block_size", 2048),
    ("model = dict(type=GPT2_small_pipeline_hybrid, num_chunks=1)", "model.preset", "gpt2_small"),
    ("model = dict(type=GPT2_exlarge_pipeline_1D)", "model.n_head", 32),
    ("model = dict(type=GPT3_pipeline_1D)", "model.preset", "gpt3"),
    ("model = dict(type=gpt2_large)", "model.n_embd", 1536),  # titans' own ...
    ("model = dict(type='gpt2_large')", "model.n_embd", 1280),  # ... and the published one
    ("model = dict(type=GPT, dim=64, depth=3, num_heads=2)", "model.n_layer", 3),
    ("model = dict(n_layer=2, n_head=2)\nHIDDEN_SIZE = 32", "model.n_embd", 32),
    # optimizer and learning rate
    ("optimizer = dict(type=Adam)", "optimizer.type", "adam"),
    ("optimizer = dict(type=Adam)", "optimizer.decay", "all"),
    ("optimizer = dict(type='AdamW')", "optimizer.decay", "matrices"),
    ("optimizer = dict(type=torch.optim.AdamW)", "optimizer.type", "adamw"),
    ("optimizer = dict(type=AdamW)", "optimizer.weight_decay", 0.01),
    ("optimizer = dict(type=Adam)", "optimizer.weight_decay", 0.0),
    ("optimizer = dict(type=SGD, momentum=0.9)", "optimizer.momentum", 0.9),
    ("optimizer = dict(type=HybridAdam)", "optimizer.type", "adamw"),
    ("optimizer = dict(type=FusedAdam)", "optimizer.type", "adamw"),
    ("optimizer = dict(type=CPUAdam, adamw_mode=True)", "optimizer.type", "adamw"),
    ("optimizer = dict(type=DeepSpeedCPUAdam)", "optimizer.type", "adamw"),
    ("optimizer = dict(betas=[0.9, 0.95])", "optimizer.betas", (0.9, 0.95)),
    ("lr_scheduler = dict(type=LinearWarmupLR, warmup_steps=3)", "lr_scheduler.warmup", 3),
    ("lr_scheduler = dict(type=LinearWarmupLR, total_steps=9)", "lr_scheduler.total", 9),
    ("lr_scheduler = dict(type=CosineAnnealingWarmupLR)", "lr_scheduler.type", "cosine"),
    (
        "optimizer = dict(lr=1e-3)\nlr_scheduler = dict(type='cosine', eta_min=1e-4)",
        "lr_scheduler.floor",
        0.1,
    ),
    # precision
    ("fp16 = dict(mode=AMP_TYPE.NAIVE)", "precision", "fp16"),
    ("amp = dict(mode=AMP_TYPE.TORCH)", "precision", "fp16"),
    ("fp16 = dict(mode='apex')", "precision", "fp16"),
    ("amp = AMP_TYPE.NAIVE", "precision", "fp16"),
    ("fp16 = dict(mode=None)", "precision", "float32"),
    ("fp16 = None", "precision", "float32"),
    ("precision = torch.bfloat16", "precision", "bf16"),
    ("fp16 = dict(mode=AMP_TYPE.NAIVE, initial_scale=32)", "loss_scale.initial", 32),
    ("clip_grad_norm = 0.0", "clip_grad_norm", None),
    ("clip_grad_norm = 1.0", "clip_grad_norm", 1.0),
    # ZeRO
    ("zero = dict(level=2, cpu_offload=True, clip_grad=1.0)", "zero.stage", 2),
    ("zero = dict(level=2, cpu_offload=True, clip_grad=1.0)", "zero.offload", "cpu"),
    ("zero = dict(level=2, cpu_offload=True, clip_grad=1.0)", "clip_grad_norm", 1.0),
    ("zero = dict(level=2)", "precision", "fp16"),
    ("zero = dict(level=2)\nprecision = 'bf16'", "precision", "bf16"),
    ("zero = dict(stage=2)", "precision", "float32"),
    ("zero = dict(level=3, offload_param_config=dict(device='cpu'))", "zero.offload_params", "cpu"),
    (
        "zero = dict(level=3, offload_optimizer_config=dict(device='nvme', nvme_path='.'))",
        "zero.offload",
        "nvme",
    ),
    (
        "zero = dict(level=3, offload_param_config=dict(device='nvme', nvme_path='.'))",
        "zero.nvme_path",
        ".",
    ),
    (
        "zero = dict(level=3, offload_param_config=dict(device='nvme', nvme_path='.'))",
        "zero.offload",
        "nvme",
    ),
    (
        "zero = dict(level=1, aio_config=dict(thread_count=2))\n"
        "optimizer = dict(nvme_offload_fraction=1.0, nvme_offload_dir='.')",
        "zero.offload",
        "nvme",
    ),
    ("zero = dict(level=3, offload_optimizer_config=dict(device='none'))", "zero.offload", None),
    ("zero = dict(model_config=dict(shard_strategy=TensorShardStrategy()))", "zero.stage", 3),
    ("zero = dict(model_config=dict(shard_strategy=BucketTensorShardStrategy()))", "zero.stage", 3),
    ("zero = dict(model_config=dict(tensor_placement_policy='cpu'))", "zero.offload", "cpu"),
    ("zero = dict(model_config=dict(tensor_placement_policy='cuda'))", "zero.offload", None),
    ("zero = dict(model_config=dict(tensor_placement_policy='auto'))", "zero.offload", None),
    (
        "zero = dict(model_config=dict(offload_config=dict(device='cpu')))",
        "zero.offload_params",
        "cpu",
    ),
    ("zero = dict(optimizer_config=dict(cpu_offload=True))", "zero.offload", "cpu"),
    ("zero = dict(optimizer_config=dict(initial_scale=2**5))", "loss_scale.initial", 32),
    ("zero = None", "zero.stage", 0),
    # losses: there is one, and these are its names
    ("loss = dict(type=GPTLMLoss)", "seed", 42),
    ("loss_fn = dict(type=vocab_parallel_cross_entropy)", "seed", 42),
]


def plan(tmp_path: Path, text: str, *overrides: str, **environ: str) -> Plan:
    path = tmp_path / "config.py"
    path.write_text(text)
    return make_plan(path, gpus=None, overrides=overrides, environ=environ)


@pytest.mark.parametrize(("text", "name", "value"), CASES)
def test_alias_sets_its_setting(tmp_path: Path, text: str, name: str, value: object) -> None:
    settings = plan(tmp_path, IMPORTS + REST + MODEL + text + "\n").settings
    actual = attrgetter(name)(settings)
    assert actual == pytest.approx(value) if isinstance(value, float) else actual == value


@pytest.mark.parametrize("path", FOREIGN, ids=lambda path: path.stem)
def test_colossal_ai_configs_are_accepted_unchanged(path: Path) -> None:
    make_plan(path, gpus=None, environ={})


def test_every_setting_can_be_set_by_its_name() -> None:
    assert all(user_name(name) in ALIASES for name in all_settings())


def test_ignored_keys_are_not_aliases() -> None:
    assert not ALIASES.keys() & IGNORED_KEYS.keys()


@pytest.mark.parametrize(
    ("overrides", "name", "value"),
    [
        (["PIPELINE=4"], "pipeline", 4),
        (["parallel.pipeline=4"], "pipeline", 4),
        (["parallel.pipeline=4", "NUM_MICRO_BATCHES=8"], "num_micro_batches", 8),
        (["precision=float32"], "precision", "float32"),
        (["precision=bf16"], "precision", "bf16"),
        (["zero.stage=0", "zero.offload=None"], "zero.stage", 0),
        (["optimizer.weight_decay=0.5"], "optimizer.weight_decay", 0.5),
        (["optimizer.type=adamw"], "optimizer.type", "adamw"),
    ],
)
def test_override_takes_precedence_over_every_alias(
    tmp_path: Path, overrides: list[str], name: str, value: object
) -> None:
    text = (
        "PIPELINE = 2\nNUM_MICRO_BATCHES = 4\nparallel = dict(pipeline=2)\n"
        "fp16 = dict(mode=AMP_TYPE.NAIVE)\nzero = dict(level=2, cpu_offload=True)\n"
        "optimizer = dict(type=Adam, lr=1e-4)\nmodel['dtype'] = torch.half\n"
    )
    settings = plan(tmp_path, IMPORTS + REST + MODEL + text, *overrides).settings
    assert attrgetter(name)(settings) == value


def test_values_computed_from_an_overridden_name_change(tmp_path: Path) -> None:
    text = "PIPELINE = 2\nNUM_MICRO_BATCHES = 4 * PIPELINE\nparallel = dict(pipeline=PIPELINE)\n"
    settings = plan(tmp_path, REST + MODEL + text, "PIPELINE=1").settings
    assert (settings.pipeline, settings.num_micro_batches) == (1, 4)


def test_unknown_override_is_rejected_like_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        plan(tmp_path, REST + MODEL, "optimizer.lrr=1e-3", "NUM_MICROBATCHES=2")
    assert str(error.value).splitlines() == [
        "command line: NUM_MICROBATCHES is not a setting; did you mean NUM_MICRO_BATCHES?",
        "command line: optimizer.lrr is not a setting; did you mean optimizer.lr?",
    ]


def test_name_read_by_the_file_is_not_an_unknown_setting(tmp_path: Path) -> None:
    own = "TERSOR_PARALLEL = 2\n"
    use = "parallel = dict(tensor=dict(size=TERSOR_PARALLEL, mode='1d'))\n"
    assert plan(tmp_path, own + use + REST + MODEL).layout.tensor == 2
    with pytest.raises(ConfigError, match="did you mean TENSOR_PARALLEL"):
        plan(tmp_path, own + REST + MODEL)


def test_known_name_read_by_the_file_is_a_setting(tmp_path: Path) -> None:
    text = "TENSOR_PARALLEL = 2\nMODE = '1d'\nNUM_MICRO_BATCHES = TENSOR_PARALLEL\n"
    assert plan(tmp_path, text + REST + MODEL).layout.tensor == 2


@pytest.mark.parametrize(
    ("file", "path", "source"),
    [
        ("", "a.txt", "auto"),
        ("data = dict(type='text')\n", "a", "auto"),
        ("data = dict(type='jsonl', path='b.txt')\n", "a.jsonl", "auto"),
        ("data = dict(type='synthetic')\n", "a.txt", "synthetic"),
    ],
)
def test_environment_variable_data_sets_path_and_type(
    tmp_path: Path, file: str, path: str, source: str
) -> None:
    data = plan(tmp_path, REST + MODEL + file, DATA=path).settings.data
    assert (data.type, data.path) == (source, path)


def test_override_takes_precedence_over_the_environment(tmp_path: Path) -> None:
    data = plan(tmp_path, REST + MODEL, "data.path=c.jsonl", DATA="a.txt").settings.data
    assert (data.type, data.path) == ("auto", "c.jsonl")
    data = plan(tmp_path, REST + MODEL, "data.type=text", DATA="a.jsonl").settings.data
    assert (data.type, data.path) == ("text", "a.jsonl")


def test_ignored_keys_are_noted_once_with_the_reason(tmp_path: Path) -> None:
    text = "zero = dict(level=2, overlap_comm=True)\nloss_args = dict(init_scale=2**8)\n"
    notes = [note for note in plan(tmp_path, REST + MODEL + text).notes if "is ignored" in note]
    path = tmp_path / "config.py"
    assert notes == [
        f"{path}:5: zero.overlap_comm is ignored: "
        "communication always overlaps computation where possible",
        f"{path}:6: loss_args is ignored: Colossal-AI does not read it either",
    ]


@pytest.mark.parametrize("name", IGNORED_KEYS)
def test_every_ignored_key_is_accepted_and_changes_no_setting(tmp_path: Path, name: str) -> None:
    sections = name.split(".")[:-1]
    only = IGNORED_KEYS[name].only
    override = f"{name}={only[0] if only else 3}"
    # What a section implies by being there is not the key's doing.
    others = [f"{'.'.join(sections[:2])}={{}}"] if sections[:1] == ["zero"] else []
    base = [*others, "optimizer.type=sgd"]
    before = plan(tmp_path, REST + MODEL, *base)
    after = plan(tmp_path, REST + MODEL, *base, override)
    assert before.settings == after.settings
    assert any(note.endswith(f"is ignored: {IGNORED_KEYS[name].reason}") for note in after.notes)
