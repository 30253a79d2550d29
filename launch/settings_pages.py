"""Renders docs/settings.md and docs/names.md."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby

from engine.config.aliases import ALIASES
from engine.config.colossalai_values import UnsupportedValueError
from engine.config.fields import Section, accepts, default_of
from engine.config.ignored_keys import IGNORED_KEYS
from engine.config.other_trainers import EXPLAINED, SYNONYMS
from engine.config.schema import Settings, all_settings, user_name

# Values to try converters with: each of them accepts at least one.
SAMPLES = ("x", "half", "naive", 1, None, True, "ddp", "deepspeed_stage_3_offload_nvme")


def settings_page() -> str:
    """Render docs/settings.md: a table of the settings without a section, then one per section."""
    parts = [
        "# Settings",
        "All settings of a config file. A name with a dot is a key of a section: "
        "`optimizer = dict(lr=3e-4)` in a file, `optimizer.lr=3e-4` on the command line. "
        "`cuboid settings` prints the same list; `cuboid settings --markdown` generates this page. "
        "The [names of other trainers](names.md) are listed separately.",
    ]
    for section, names in groupby(by_section(), key=section_of):
        if section:
            parts.append(f"## {section}\n\n{meaning_of(section)}")
        parts.append(_table(("setting", "takes", "default", "meaning"), map(_row, names)))
    return "\n\n".join(parts) + "\n"


def names_page() -> str:
    """Render docs/names.md: other trainers' names that cuboid accepts, ignores or explains."""
    named = ((" ".join(f"`{name}`" for name in names.split()), key) for key, names in _others())
    return (
        "\n\n".join(
            [
                "# Names of other trainers",
                "`cuboid settings --names` generates this page. cuboid's own settings are in "
                "[settings](settings.md).",
                "## Accepted",
                "Config files for Colossal-AI need no change. Each of these names, of Colossal-AI, "
                "Lightning and minGPT, is an alias of settings. [Coming from another "
                "trainer](other-trainers.md) lists the flags of four trainers one by one.",
                _table(("name", "setting"), sorted(_accepted())),
                "## Accepted without effect",
                "A note states the reason. A value that would change the training is rejected.",
                _table(
                    ("name", "reason"),
                    ((f"`{name}`", why.reason) for name, why in IGNORED_KEYS.items()),
                ),
                "## Not accepted",
                "A config with one of these names of nanoGPT, minGPT, DeepSpeed, Megatron-LM, "
                "torchtitan, Hugging Face or Lightning is rejected, and the message names the "
                "setting to use instead. Case, dashes, underscores and the section are ignored.",
                _table(("names", "instead"), named),
            ]
        )
        + "\n"
    )


def by_section() -> list[str]:
    """Return all settings: those without a section first, then section by section as in the
    schema."""
    order = ["", *Settings.model_fields]
    return sorted(all_settings(), key=lambda name: order.index(section_of(name)))


def section_of(name: str) -> str:
    """Return the section of a setting, empty if it has none."""
    return name.rpartition(".")[0]


def meaning_of(section: str) -> str:
    """Return the description of a section."""
    kind = Settings.model_fields[section].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, Section)
    return kind.__doc__ or ""


def _others() -> list[tuple[str, str]]:
    return [
        *((f"`{setting}`", names) for setting, names in SYNONYMS.items()),
        *EXPLAINED.items(),
    ]


def _accepted() -> list[tuple[str, str]]:
    setting_names = set(map(user_name, all_settings()))
    return [(f"`{name}`", _meaning(name)) for name in ALIASES if name not in setting_names]


def _meaning(name: str) -> str:
    """Return the settings that an alias sets, as Markdown."""
    meaning = ALIASES[name]
    names = {str(meaning): None}
    if callable(meaning):
        names = {}
        for value in SAMPLES:
            with suppress(UnsupportedValueError):
                names |= dict.fromkeys(meaning(value))
    return ", ".join(f"`{user_name(name)}`" for name in names) or "only its fixed value is accepted"


def _row(name: str) -> tuple[str, str, str, str]:
    """Return a setting's row: name, accepted values, default and meaning, in Markdown."""
    field = all_settings()[name]
    default = default_of(field)
    extra = field.json_schema_extra
    in_words = isinstance(extra, dict) and "shown" in extra
    return (
        f"`{user_name(name)}`",
        accepts(field),
        default if in_words else f"`{default}`" if default else "must be given",
        field.description or "",
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
