"""The one training driver: flags -> data -> model -> the stock Trainer -> a loadable folder, its scores, the Hub.

python finetune.py configs/demo.yaml --output_dir output/demo/model
torchrun --nproc_per_node 8 finetune.py configs/finetune_lora.yaml --model_name_or_path M --data_path D
python finetune.py --publish output/demo/model --hub_model_id OWNER/NAME
"""

import logging
import sys
import time
from typing import Any

from transformers import Trainer

from serving.card import write_card
from training.arguments import Arguments, parse
from training.callbacks import FiniteSteps, SeededLengthGroups, WholeCheckpoints, drop_pickle
from training.engines import RunningEngine
from training.hub import publish_folder, publish_output, published_checkpoints, reserve_for
from training.inspect_step import inspected
from training.launch import start
from training.log_lines import LogLines
from training.optimizer import GroupedOptimizer
from training.parts import Parts
from training.record import table, write_metrics
from training.resume import begin, resume_point
from training.run_cost import reading, sizes
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
    if arguments.run.publish:
        print(f"Published: {publish_folder(arguments)}")
        return {}
    reserve_for(arguments)
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
    if arguments.training.inspect_step is not None:
        print(inspected(trainer, arguments.training))
        return {}
    metrics: dict[str, Any] = sizes(parts.model)
    if arguments.training.do_train:
        metrics |= trainer.train(resume_from_checkpoint=checkpoint).metrics
        metrics |= reading(trainer.state.log_history)
        stage.save(arguments, parts, trainer)
        drop_pickle(arguments.training.output_dir)
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
        if arguments.training.do_train and stage.published:
            write_card(arguments.training.output_dir)
        publish_output(arguments)
    return metrics


def build_trainer(arguments: Arguments, parts: Parts) -> Trainer:
    """The stock Trainer, with several learning rates if they are asked for and checkpoints that carry a marker."""
    training, grouped = arguments.training, None
    rates = {"graph_learning_rate": training.graph_learning_rate, "ratio": arguments.lora.loraplus_lr_ratio}
    if any(rate is not None for rate in rates.values()):
        grouped = GroupedOptimizer, {"arguments": training, **rates}
    limit, training.save_total_limit = training.save_total_limit, None
    trusted = FiniteSteps(), SeededLengthGroups(), WholeCheckpoints(parts.write_companions, limit), LogLines()
    published = published_checkpoints(arguments)
    trainer = Trainer(
        model=parts.model,
        args=training,
        data_collator=parts.collator,
        train_dataset=parts.splits.get("train"),
        eval_dataset=parts.splits.get("validation"),
        processing_class=parts.processor,
        compute_metrics=parts.compute_metrics,
        preprocess_logits_for_metrics=parts.prepare_metrics,
        callbacks=[*trusted, *published],
        optimizer_cls_and_kwargs=grouped,
    )
    # in front of the reporters, which then see what these add to a row of the log
    trainer.callback_handler.callbacks[:0] = parts.callbacks
    trainer.add_callback(RunningEngine(trainer))
    return trainer


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
            raise
        print(f"finetune.py: {error}", file=sys.stderr)
        sys.exit(2)
