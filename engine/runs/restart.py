"""How a launch that was here before goes on: with the settings that its run recorded."""

from __future__ import annotations

from collections.abc import Sequence

from engine.plan import Plan
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import Record, read_record
from engine.runs.resume_candidates import Asked, output_of, own_folder
from engine.unsupported import refuse_not_yet
from engine.world.distributed import Restart


def restart(*, name: str, size: int, overrides: Sequence[str], asked: Asked) -> Restart:
    """Describe how the ranks of a launch find what its run recorded. ``name`` is the run's, where
    the config cannot be read any more; ``overrides`` those of the command line."""

    def find(run_id: str, made: Plan | None) -> str:
        output = output_of(made, asked) if made else asked.output
        home = own_folder(run_id, made.settings.name if made else name, output, asked.resume)
        if home is None or not RunFolder(home).resolved.is_file():
            return ""
        return read_record(RunFolder(home)).model_dump_json()

    def plan(text: str) -> Plan:
        record = Record.model_validate_json(text)
        new = [override for override in overrides if override not in record.overrides]
        made = record.plan(gpus=size, overrides=new)
        refuse_not_yet(made)
        return made

    return Restart(find=find, plan=plan)
