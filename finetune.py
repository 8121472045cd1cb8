"""The one training driver: flags -> data -> model -> the stock Trainer -> a loadable folder, its scores, the Hub.

python finetune.py configs/demo.yaml --output_dir output/demo/model
torchrun --nproc_per_node 8 finetune.py configs/finetune_lora.yaml --model_name_or_path M --data_path D
"""

import logging
import sys
import time
from typing import Any

from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from serving.publish import push
from training.arguments import Arguments, TrainingArguments, parse
from training.callbacks import WholeCheckpoints, last_whole_checkpoint
from training.launch import start
from training.optimizer import GroupedOptimizer
from training.parts import Parts
from training.record import check_same_run, table, write_metrics, write_run
from training.stages import STAGES

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """One run; returns what metrics.json holds.

    Args:
        argv: the command line without the program's name; by default that of this process.
    """
    started = time.perf_counter()
    arguments = parse(sys.argv[1:] if argv is None else argv)
    start(arguments.training)
    stage = STAGES[arguments.run.stage]
    opened = stage.open(arguments)
    begin(arguments, opened.splits)
    checkpoint = resume_point(arguments)
    parts = stage.build(arguments, opened)
    if arguments.run.dry_run:
        report, figures = stage.dry_run(arguments, parts)
        print(report)
        return figures

    trainer = build_trainer(arguments, parts)
    stage.check(arguments, parts)
    metrics: dict[str, Any] = {}
    if arguments.training.do_train:
        metrics |= trainer.train(resume_from_checkpoint=checkpoint).metrics
        stage.save(arguments, parts, trainer)
    if arguments.training.do_eval:
        metrics |= trainer.evaluate()
    if arguments.training.do_predict:
        found = stage.predict(arguments, parts, trainer)
        metrics |= found
        if trainer.is_world_process_zero():
            print(table(found))
    metrics["minutes"] = (time.perf_counter() - started) / 60
    if trainer.is_world_process_zero():
        write_metrics(arguments.training.output_dir, metrics)
        publish(arguments.training)
    return metrics


def begin(arguments: Arguments, raw: dict[str, Any]) -> None:
    """Claims the output folder with run.json, unless its checkpoints are another run's and would be continued."""
    training = arguments.training
    if not (training.do_train and training.should_save) or arguments.run.dry_run:
        return
    data = {name: split.fingerprint for name, split in raw.items()}
    if training.resume_from_checkpoint == "auto":
        check_same_run(training.output_dir, arguments.flat(), data)
    write_run(training.output_dir, arguments.flat(), data)


def resume_point(arguments: Arguments) -> str | None:
    """The checkpoint to go on from: the one that was named, or the last whole one of the output folder."""
    named = arguments.training.resume_from_checkpoint
    if named in (None, "none") or not arguments.training.do_train:
        return None
    if named != "auto":
        return named
    found = last_whole_checkpoint(arguments.training.output_dir)
    if found is None:
        return None
    logger.info("Going on from %s (--resume_from_checkpoint none begins again).", found)
    steps = TrainerState.load_from_json(found / TRAINER_STATE_NAME).global_step
    if 0 < arguments.training.max_steps <= steps:
        # the Trainer would take one step more; without an epoch to run it loads the checkpoint and ends
        arguments.training.max_steps, arguments.training.num_train_epochs = -1, 0
    return str(found)


def build_trainer(arguments: Arguments, parts: Parts) -> Trainer:
    """The stock Trainer, with a second learning rate if one is asked for and checkpoints that carry a marker."""
    training = arguments.training
    rate = training.graph_learning_rate
    grouped = (GroupedOptimizer, {"arguments": training, "graph_learning_rate": rate}) if rate is not None else None
    limit, training.save_total_limit = training.save_total_limit, None
    trainer = Trainer(
        model=parts.model,
        args=training,
        data_collator=parts.collator,
        train_dataset=parts.splits.get("train"),
        eval_dataset=parts.splits.get("validation"),
        processing_class=parts.processor,
        compute_metrics=parts.compute_metrics,
        preprocess_logits_for_metrics=parts.prepare_metrics,
        callbacks=[WholeCheckpoints(parts.write_companions, limit)],
        optimizer_cls_and_kwargs=grouped,
    )
    # in front of the reporters, which then see what these add to a row of the log
    trainer.callback_handler.callbacks[:0] = parts.callbacks
    return trainer


def publish(training: TrainingArguments) -> None:
    """With --push_to_hub, the finished folder goes to the Hub."""
    if training.push_to_hub:
        where = (training.hub_model_id, training.hub_token, training.hub_private_repo, training.hub_revision)
        logger.info("Published: %s", push(training.output_dir, *where))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
            raise
        print(f"finetune.py: {error}", file=sys.stderr)
        sys.exit(2)
