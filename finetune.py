"""The one training driver: flags -> data -> model -> the stock Trainer -> a loadable folder, its scores, the Hub.

    python finetune.py configs/demo.yaml --output_dir output/demo/model
    torchrun --nproc_per_node 8 finetune.py configs/finetune_lora.yaml --model_name_or_path M --data_path D
"""

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from data_processor.collator import GraphCollator
from data_processor.dataset import GraphQADataset
from data_processor.schema import read_jsonl
from evaluation.generation import generate_predictions
from modeling_graphllm import GraphConfig
from processing_graphllm import GraphLLMProcessor
from serving.publish import base_folder, composite, push, save_output, write_companions
from training.arguments import Arguments, TrainingArguments, parse
from training.callbacks import WholeCheckpoints, last_whole_checkpoint
from training.data import build_processor, encode, graph_settings, load_tokenizer, longest
from training.dry_run import dry_run
from training.launch import start
from training.model import check_trainable, graph_config_of
from training.optimizer import GroupedOptimizer
from training.record import check_same_run, write_metrics, write_run
from training.stages import STAGES

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """One run; returns what metrics.json holds.

    Args:
        argv: the command line without the program's name; by default that of this process.
    """
    arguments = parse(sys.argv[1:] if argv is None else argv)
    start(arguments.training)
    stage = STAGES[arguments.run.stage]
    tokenizer, text_config = load_tokenizer(arguments)
    raw = stage.open_splits(arguments, tokenizer)
    begin(arguments, raw)
    checkpoint = resume_point(arguments)
    processor, graph = readers(arguments, tokenizer, text_config, next(iter(raw.values())))
    splits = encode(arguments, raw, processor, text_config)
    model = stage.build_model(arguments, graph, processor, feature_encoder_of(raw))
    if arguments.run.dry_run:
        report, figures = dry_run(arguments, model, processor, splits["train"])
        print(report)
        return figures
    if arguments.run.include_base:
        base_folder(composite(model))  # what could not be copied at the end is said before the start

    trainer = build_trainer(arguments, model, processor, splits)
    metrics: dict[str, Any] = {}
    if arguments.training.do_train:
        metrics |= trainer.train(resume_from_checkpoint=checkpoint).metrics
        save(arguments, trainer, processor)
    if arguments.training.do_eval:
        metrics |= trainer.evaluate()
    if arguments.training.do_predict:
        metrics |= predict(arguments, trainer, processor, raw["test"])
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


def readers(
    arguments: Arguments, tokenizer: Any, text_config: Any, dataset: Any
) -> tuple[GraphLLMProcessor, GraphConfig]:
    """The processor and the graph's reader: those of --init_from, or new ones as the flags and the data say."""
    if arguments.run.init_from:
        return GraphLLMProcessor.from_pretrained(arguments.run.init_from), graph_config_of(arguments.run.init_from)
    graph = graph_settings(arguments.graph, dataset, arguments.data.use_graph)
    return build_processor(arguments, tokenizer, graph, text_config), graph


def feature_encoder_of(raw: dict[str, Any]) -> str | None:
    """What made the graph's features; None for conversations."""
    dataset = next(iter(raw.values()))
    return dataset.graph.text_encoder if isinstance(dataset, GraphQADataset) else None


def build_trainer(arguments: Arguments, model: Any, processor: GraphLLMProcessor, splits: dict[str, Any]) -> Trainer:
    """The stock Trainer, with a second learning rate if one is asked for and checkpoints that carry a marker."""
    training = arguments.training
    rate = training.graph_learning_rate
    grouped = (GroupedOptimizer, {"arguments": training, "graph_learning_rate": rate}) if rate is not None else None
    limit, training.save_total_limit = training.save_total_limit, None
    trainer = Trainer(
        model=model,
        args=training,
        data_collator=GraphCollator(processor),
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=processor,
        callbacks=[WholeCheckpoints(partial(write_companions, model, processor), limit)],
        optimizer_cls_and_kwargs=grouped,
    )
    check_trainable(model, arguments.adaptation)
    return trainer


def save(arguments: Arguments, trainer: Trainer, processor: GraphLLMProcessor) -> None:
    """A loadable folder at the top of the output; every process takes part, the first one writes."""
    save_output(
        trainer.model,
        processor,
        arguments.training.output_dir,
        arguments.run.include_base,
        save_weights=partial(trainer.save_model, _internal_call=True),
        write=trainer.is_world_process_zero(),
    )


def publish(training: TrainingArguments) -> None:
    """With --push_to_hub, the finished folder goes to the Hub."""
    if training.push_to_hub:
        where = (training.hub_model_id, training.hub_token, training.hub_private_repo, training.hub_revision)
        logger.info("Published: %s", push(training.output_dir, *where))


def predict(arguments: Arguments, trainer: Trainer, processor: GraphLLMProcessor, dataset: Any) -> dict[str, float]:
    """Answers the test split into predictions.jsonl and scores it."""
    model = composite(trainer.model)
    path = generate_predictions(
        model,
        processor,
        dataset,
        Path(arguments.training.output_dir) / "predictions.jsonl",
        batch_size=arguments.training.per_device_eval_batch_size,
        max_new_tokens=arguments.model.max_new_tokens,
        max_length=longest(arguments, model.config.text_config),
    )
    return STAGES[arguments.run.stage].score([row for _, row in read_jsonl(path)])


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
            raise
        print(f"finetune.py: {error}", file=sys.stderr)
        sys.exit(2)
