"""`--dry_run`: what a run would train, on what, in how many steps and how much memory, without training."""

import math
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from data_processor.preprocess import EncodedDataset
from data_processor.schema import write_json
from processing_graphllm import IGNORE_INDEX, GraphLLMProcessor
from training.arguments import Arguments, TrainingArguments
from training.memory import GIB, estimate, format_memory, format_parameters, parameter_table, step_of

SAMPLE = 256  # examples of which the longest make the batch that is traced


def dry_run(
    arguments: Arguments, model: PreTrainedModel | PeftModel, processor: GraphLLMProcessor, train: EncodedDataset
) -> tuple[str, dict[str, float]]:
    """The report as text, and its figures by name, which also go to --json if that is given."""
    table = parameter_table(model)
    text_config = model.config.text_config
    step = step_of(arguments.training, text_config.hidden_size, arguments.lora.loraplus_lr_ratio)
    found = estimate(model, longest_batch(arguments.training, processor, train), step)
    memory, others = found.table(), found.elsewhere()
    counts = steps(arguments.training, len(train))
    report = [
        format_parameters(table),
        f"the first example; what is trained stands in «»\n\n{rendered(train[0], processor)}",
        format_memory(memory) + format_elsewhere(others),
        ", ".join(f"{name} {value:,}" for name, value in counts.items()),
    ]
    figures = {f"{room}/{name}": float(value) for room, row in table.items() for name, value in row.items()}
    figures |= {f"memory/{name}": float(row.gpu) for name, row in memory.items()}
    figures |= {f"memory_host/{name}": float(row.host) for name, row in memory.items() if row.host}
    figures |= {f"memory_on_gpus/{count}": float(size) for count, size in others.items()}
    figures |= {f"steps/{name}": float(value) for name, value in counts.items()}
    write_figures(arguments, figures)
    return "\n\n".join(report), figures


def stage_report(
    arguments: Arguments, model: PreTrainedModel, examples: int, first: str
) -> tuple[str, dict[str, float]]:
    """The report of a stage without a language model: parameters, what the run reads first, steps; and its figures.

    Args:
        arguments: all flags. model: what would be trained. examples: items of the training split.
        first: the first of them, in words.
    """
    table, counts = parameter_table(model, lambda name: name.partition(".")[0]), steps(arguments.training, examples)
    figures = {f"{room}/{name}": float(value) for room, row in table.items() for name, value in row.items()}
    figures |= {f"steps/{name}": float(value) for name, value in counts.items()}
    write_figures(arguments, figures)
    said = ", ".join(f"{name} {value:,}" for name, value in counts.items())
    return "\n\n".join([format_parameters(table), first, said]), figures


def write_figures(arguments: Arguments, figures: dict[str, float]) -> None:
    """Writes the figures to --json, if that is given."""
    if arguments.run.json:
        write_json(arguments.run.json, figures)


def longest_batch(
    training: TrainingArguments, processor: GraphLLMProcessor, train: EncodedDataset
) -> dict[str, Any]:
    """The batch of one GPU that the longest of the first examples make."""
    sample = sorted((train[i] for i in range(min(SAMPLE, len(train)))), key=lambda one: -len(one["input_ids"]))
    count = training.per_device_train_batch_size
    return dict(processor.pad([sample[i % len(sample)] for i in range(count)]))


def format_elsewhere(sizes: dict[int, float]) -> str:
    """`all` on other numbers of GPUs, as a line of text."""
    if not sizes:
        return ""
    return "\nall, GiB on each of so many GPUs: " + ", ".join(f"{n}: {size / GIB:.2f}" for n, size in sizes.items())


def steps(training: TrainingArguments, examples: int) -> dict[str, int]:
    """Examples, the effective batch, and how many optimizer steps an epoch and the whole run take."""
    batches = math.ceil(examples / (training.per_device_train_batch_size * training.world_size))
    epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    batch = training.per_device_train_batch_size * training.world_size * training.gradient_accumulation_steps
    total = training.max_steps if training.max_steps > 0 else math.ceil(epoch * training.num_train_epochs)
    return {"examples": examples, "batch": batch, "steps an epoch": epoch, "steps in all": total}


def rendered(example: dict[str, Any], processor: GraphLLMProcessor) -> str:
    """The example as the model reads it: runs of graph tokens as a count, runs of trained tokens in «»."""
    ids, labels = example["input_ids"], example["labels"]
    if processor.is_encoder_decoder:
        return f"{_text(ids, processor)}«{_text(labels, processor)}»"
    pieces, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == IGNORE_INDEX) != (labels[start] == IGNORE_INDEX):
            text = _text(ids[start:end], processor)
            pieces.append(text if labels[start] == IGNORE_INDEX else f"«{text}»")
            start = end
    return "".join(pieces)


def _text(ids: list[int], processor: GraphLLMProcessor) -> str:
    text = processor.tokenizer.decode(ids, skip_special_tokens=False)
    for count in range(len(ids), 1, -1):
        text = text.replace(processor.graph_token * count, f"[{count} graph tokens]")
    return text
