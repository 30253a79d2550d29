"""The plan of a restarted launch: made from the settings that its run recorded."""

from __future__ import annotations

from collections.abc import Sequence

from engine.plan import Plan
from engine.runs.folder import RunFolder
from engine.runs.plan_from_run import RunRecord, read_record
from engine.runs.start_candidates import StartOptions, chosen_output, folder_of_launch
from engine.unsupported import require_supported
from engine.world.distributed import RestartCallbacks


def restart_of_launch(
    *, name: str, size: int, overrides: Sequence[str], options: StartOptions
) -> RestartCallbacks:
    """Return the functions with which the ranks of a restarted launch find the record of their run
    and make a plan from that record.

    ``name``: the name of the run, used if the config can no longer be read.
    ``overrides``: the overrides on the command line.
    """

    def find_record(run_id: str, made: Plan | None) -> str:
        output = chosen_output(made, options) if made else options.output
        run_folder = folder_of_launch(
            run_id, made.settings.name if made else name, output, options.resume
        )
        if run_folder is None or not RunFolder(run_folder).resolved.is_file():
            return ""
        return read_record(RunFolder(run_folder)).model_dump_json()

    def plan(text: str) -> Plan:
        record = RunRecord.model_validate_json(text)
        new = [override for override in overrides if override not in record.overrides]
        made = record.plan(gpus=size, overrides=new)
        require_supported(made)
        return made

    return RestartCallbacks(find_record=find_record, plan=plan)
