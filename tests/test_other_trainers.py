"""docs/other-trainers.md: its settings exist, and each flag leads to the setting of its row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.config.aliases import ALIASES
from engine.config.colossalai_values import UnsupportedValueError
from engine.config.ignored_keys import IGNORED_KEYS
from engine.config.lightning_values import STRATEGIES
from engine.config.name_hints import closest
from engine.config.schema import all_settings, user_name
from launch.settings_pages import SAMPLES

PAGE = (Path(__file__).parents[1] / "docs" / "other-trainers.md").read_text(encoding="utf-8")
TRAINERS = PAGE.split("\n## ")[1:]
OWN = {user_name(name) for name in all_settings()}
NAME = re.compile(r"`(?:\w+\.py )?-*([A-Za-z_][\w.-]+)`")
ROW = re.compile(r"^\| (`.*?) \| ?(.*?) ?\| ?(.*?) ?\|$", re.MULTILINE)
NOT_KEYS = {"DIR", "CONFIG"}  # positional arguments
AMBIGUOUS = {"batch_size"}  # of a rank in one trainer, of all ranks in another

# All flags of each trainer, in the order of the page.
FLAGS = (
    """
    DIR -j --workers --epochs --start-epoch -b --batch-size --lr --learning-rate --momentum --wd
    --weight-decay -p --print-freq --resume -e --evaluate --pretrained --num-classes --world-size
    --rank --dist-url --dist-backend --seed --gpu --multiprocessing-distributed
    --enable-model-parallel --enable-one-data-group --enable-amp-mode --enable-zero-optim --n-layer
    --n-head --n-embd""",
    """
    data_config.path data_config.block_size data_config.train_split data_config.truncate
    gpt_config.n_layer gpt_config.n_head gpt_config.n_embd gpt_config.model_type
    gpt_config.vocab_size gpt_config.block_size gpt_config.embd_pdrop gpt_config.resid_pdrop
    gpt_config.attn_pdrop optimizer_config.learning_rate optimizer_config.weight_decay
    trainer_config.max_epochs trainer_config.batch_size trainer_config.data_loader_workers
    trainer_config.grad_norm_clip trainer_config.snapshot_path trainer_config.save_every
    trainer_config.use_amp trainer_config.distributed_method trainer_config.cpu_offload
    hydra.run.dir""",
    """
    --n_layer --n_head --n_embd --learning_rate --block_size --batch_size --num_workers --gpus
    --num_nodes --devices --accelerator --precision --strategy --max_epochs --gradient_clip_val
    --callbacks --limit_train_batches --accumulate_grad_batches --log_every_n_steps
    --default_root_dir --fast_dev_run --enable_checkpointing --checkpoint --save_top_k
    evaluate.py&--checkpoint evaluate.py&--num_workers evaluate.py&--batch_size
    benchmark.py&--cpu_offload""",
    """
    CONFIG --data_root --dataset --vocab_size --relative_log_path --comment --debug --seed
    --train_batch_size --gradient_accumulation_steps --eval_batch_size --test_batch_size --seq_len
    --max_eval_steps --max_train_steps --decay_steps --max_lr --min_lr --grad_clip_norm
    --tokens_per_second --eval_every --log_terminal_every --log_metrics_every --log_grads_every
    --log_activations_every --log_ckpt_every --logger_type --wandb_project_name --use_flash
    --n_layers --h_dim --mlp_dim --head_dim --n_heads --compile eval.py&--checkpoint_file
    eval.py&--config_file eval.py&--wandb_run eval.py&--data_root eval.py&--eval_data_split
    eval.py&--last_n throughput.py&--compile throughput.py&--results_pickle_file
    throughput_sweep.py&--gpu throughput_sweep.py&--batch_size_step""",
)


def rows() -> list[tuple[str, set[str]]]:
    """Return each flag of the tables, with the settings of its row."""
    tables = [trainer.split("\nStrategies,")[0] for trainer in TRAINERS]
    return [
        (flag.replace("-", "_"), set(NAME.findall(here)))
        for table in tables
        for flags, here, _ in ROW.findall(table)
        for flag in NAME.findall(flags)
        if flag not in NOT_KEYS
    ]


def settings_of(name: str) -> set[str]:
    """Return the settings that a name sets, or that its hint names; "" if it is explained."""
    if name in OWN:
        return {name}
    meaning = ALIASES.get(name)
    if isinstance(meaning, str):
        return {user_name(meaning)}
    if meaning is not None:
        found = set()
        for value in (*SAMPLES, 0.5, "fsdp"):
            try:
                found |= {*map(user_name, meaning(value))}
            except UnsupportedValueError:
                continue
        return found
    if name in IGNORED_KEYS:
        return set()
    hint = closest(name)
    assert hint, f"{name} has no hint"
    return {setting.partition("=")[0] for setting in hint.settings}


def test_the_page_lists_the_flags_of_four_trainers() -> None:
    assert len(TRAINERS) == 4
    assert len(rows()) > 80
    assert all(any(flag in trainer for trainer in TRAINERS) for flag in ("--epochs", "--strategy"))


@pytest.mark.parametrize(("trainer", "flags"), [*zip(TRAINERS, FLAGS, strict=True)])
def test_every_flag_of_a_trainer_is_in_its_table(trainer: str, flags: str) -> None:
    listed = {flag for row in ROW.findall(trainer) for flag in re.findall(r"`(.*?)`", row[0])}
    assert {flag.replace("&", " ") for flag in flags.split()} - listed == set()


@pytest.mark.parametrize(
    ("flag", "settings"),
    rows(),
    ids=lambda item: str(sorted(item) if isinstance(item, set) else item)[:30],
)
def test_a_flag_leads_to_the_setting_of_its_row(flag: str, settings: set[str]) -> None:
    assert settings <= OWN | {"lr_scheduler.eta_min"}, "a setting of the row does not exist"
    found = settings_of(flag)
    if found and settings and flag not in AMBIGUOUS:
        assert found & settings, f"{flag} leads to {found}"


def test_all_names_on_the_page_exist() -> None:
    """Names with a section that is cuboid's."""
    sections = {name.partition(".")[0] for name in OWN if "." in name}
    named = {name for name in NAME.findall(PAGE) if name.partition(".")[0] in sections}
    named = {name for name in named if "." in name and not name.endswith(".py")}
    assert named - OWN == {"lr_scheduler.eta_min"}


def test_the_table_of_strategies_is_that_of_the_code() -> None:
    table = PAGE.split("\nStrategies,")[1].split("\n## ")[0]
    listed: dict[str, dict[str, object]] = {}
    for line in table.splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[1].isdigit():
            for name in cells[0].replace("`", "").split(", "):
                listed[name] = {
                    "zero.stage": int(cells[1]),
                    "zero.offload": cells[2] or None,
                    "zero.offload_params": cells[3] or None,
                }
    assert listed == {
        name: {
            key: settings.get(key) for key in ("zero.stage", "zero.offload", "zero.offload_params")
        }
        for name, settings in STRATEGIES.items()
    }
