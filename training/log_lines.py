"""log.jsonl: every row of the Trainer's log, a line each, while the run goes on: what a sweep and a report read."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_processor.schema import whole_lines, write_jsonl

LOG = "log.jsonl"


class LogLines(TrainerCallback):
    """Appends each row of the log to log.jsonl of the output folder; of all processes, the first one writes.

    A run that goes on from a checkpoint drops the rows behind it: it will write them again.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        path = Path(args.output_dir) / LOG
        if state.is_world_process_zero:
            write_jsonl(path, [row for row in whole_lines(path) if row["step"] <= state.global_step])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        row = {"step": state.global_step, "epoch": state.epoch, **logs}
        path = Path(args.output_dir) / LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
