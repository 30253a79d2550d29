"""The settings and notes in RUN/statements.json. No torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from engine.config.resolve import Precedence, SettingSource, show
from engine.config.values import Origin, Symbol


class RecordModel(BaseModel):
    """A part of statements.json; fields that its class does not declare are rejected."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True
    )


class RecordedSetting(RecordModel):
    """A ``SettingSource`` in statements.json. Each field has its name on the disk as its name or
    its alias."""

    name: str
    written: str
    """The value as messages show it."""
    value: Any
    file: str
    line: int
    precedence: Precedence = Field(alias="weight")
    remark: str = ""

    @classmethod
    def of(cls, source: SettingSource) -> RecordedSetting:
        """Convert from a ``SettingSource``."""
        return cls(
            name=source.name,
            written=show(source.written),
            value=source.value,
            file=source.origin.file,
            line=source.origin.line,
            weight=source.precedence,
            remark=source.remark,
        )

    def setting_source(self) -> SettingSource:
        """Convert to a ``SettingSource``."""
        return SettingSource(
            name=self.name,
            written=Symbol(self.written),  # a Symbol is shown as its text
            value=tuple(self.value) if isinstance(self.value, list) else self.value,
            origin=Origin(self.file, self.line, 0),
            precedence=self.precedence,
            remark=self.remark,
        )


class RecordedNote(RecordModel):
    """A note that a key of the config has no effect."""

    file: str
    line: int
    message: str
