"""The stage `qa`: a language model that reads graphs, trained to answer questions or conversations."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from data_processor.collator import GraphCollator
from data_processor.dataset import GraphQADataset
from data_processor.schema import read_jsonl
from evaluation.generation import generate_predictions
from evaluation.metrics import score
from modeling_graphllm import GraphConfig
from processing_graphllm import GraphLLMProcessor
from serving.publish import base_folder, composite, save_output, write_companions
from training import data, model
from training.adapters import first_factors, save_as_plain_lora, takes_from_base
from training.align_model import aligned_config, check_states
from training.arguments import Arguments
from training.dry_run import dry_run as report
from training.model import check_trainable, graph_config_of
from training.packing import PackingProbe
from training.parts import Opened, Parts
from training.speed import speed_up
from training.throughput import ThroughputLog


def open_splits(arguments: Arguments) -> Opened:
    """The tokenizer of the base model and the splits that the run reads."""
    tokenizer, text_config = data.load_tokenizer(arguments)
    return Opened(data.open_splits(arguments, tokenizer), tokenizer, text_config)


def build(arguments: Arguments, opened: Opened) -> Parts:
    """Processor, tokenised splits and the model."""
    first = next(iter(opened.splits.values()))
    if isinstance(first, GraphQADataset):
        data.tell_of_centres(first)
    processor, graph = readers(arguments, opened, first)
    splits = data.encode(arguments, opened.splits, processor, opened.text_config)
    encoder = first.graph.text_encoder if isinstance(first, GraphQADataset) else None
    built = model.build_model(arguments, graph, processor, encoder)
    packing = arguments.data.packing
    speed_up(composite(built).language_model, arguments.training, packing)
    return Parts(
        model=built,
        splits=splits,
        test=opened.splits.get("test"),
        collator=GraphCollator(processor, packing),
        write_companions=partial(write_companions, built, processor),
        processor=processor,
        first_factors=first_factors(built) if takes_from_base(built) else {},
        callbacks=[ThroughputLog(), *([PackingProbe()] if packing else [])],
    )


def readers(arguments: Arguments, opened: Opened, dataset: Any) -> tuple[GraphLLMProcessor, GraphConfig]:
    """The processor and the graph's reader: those of --init_from, or new ones as the flags and the data say."""
    if arguments.earlier:
        return GraphLLMProcessor.from_pretrained(arguments.earlier), graph_config_of(arguments.earlier)
    if arguments.alignment:
        graph = aligned_config(arguments, dataset)
    else:
        graph = data.graph_settings(arguments, dataset)
        if graph.readout == "qformer":
            check_states(graph, dataset)
    return data.build_processor(arguments, opened.tokenizer, graph, opened.text_config), graph


def dry_run(arguments: Arguments, parts: Parts) -> tuple[str, dict[str, float]]:
    """Parameters, one example, memory and steps."""
    return report(arguments, parts.model, parts.processor, parts.splits["train"])


def check(arguments: Arguments, parts: Parts) -> None:
    """Just what the adaptation says is trained, and the base model can be copied at the end if it must be."""
    check_trainable(parts.model, arguments.adaptation)
    if arguments.run.include_base:
        base_folder(composite(parts.model).config)


def save(arguments: Arguments, parts: Parts, trainer: Trainer) -> None:
    """A loadable folder at the top of the output; every process takes part, the first one writes."""
    save_output(
        trainer.model,
        parts.processor,
        arguments.training.output_dir,
        arguments.run.include_base,
        save_weights=partial(trainer.save_model, _internal_call=True),
        write=trainer.is_world_process_zero(),
    )
    if parts.first_factors and trainer.is_world_process_zero():
        save_as_plain_lora(Path(arguments.training.output_dir), parts.first_factors)


def predict(arguments: Arguments, parts: Parts, trainer: Trainer) -> dict[str, float]:
    """Answers the test split into predictions.jsonl and scores it."""
    asked = composite(trainer.model)
    with torch.compiler.set_stance("force_eager"):  # --torch_compile is for training: a cache grows with each token
        path = generate_predictions(
            asked,
            parts.processor,
            parts.test,
            Path(arguments.training.output_dir) / "predictions.jsonl",
            batch_size=arguments.training.per_device_eval_batch_size,
            max_new_tokens=arguments.model.max_new_tokens,
            max_length=data.longest(arguments, asked.config.text_config),
        )
    return score([row for _, row in read_jsonl(path)])
