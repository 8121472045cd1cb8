"""`--inspect_step N`: the examples of one optimizer step, as a run with the same flags meets them."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from transformers import Trainer

from data_processor.preprocess import EncodedDataset
from training.dry_run import rendered
from training.rooms import TrainingArguments


def inspected(trainer: Trainer, training: TrainingArguments) -> str:
    """The step's examples as text: number, id, length, and what the model reads, what is trained in «».

    Raises:
        ValueError: the run has no such step.
    """
    data: EncodedDataset = trainer.train_dataset
    rows = examples_of_step(trainer, training.inspect_step)
    lines = [f"step {training.inspect_step}: {len(rows)} examples on {training.world_size} processes"]
    for row in rows:
        source, example = int(data.index[row]), data[row]
        nodes = [len(graph["node_features"]) for graph in example["graphs"]]
        lines.append(
            f"\nexample {source + 1} of the file, id {data.dataset[source]['id']!r}, {len(example['input_ids'])} "
            f"tokens, graphs of {nodes} nodes\n{rendered(example, trainer.processing_class)}"
        )
    return "\n".join(lines)


def examples_of_step(trainer: Trainer, step: int) -> list[int]:
    """The rows of the training data that all processes together read in an optimizer step, counted from 1.

    Raises:
        ValueError: no such step.
    """
    training, loader = trainer.args, trainer.get_train_dataloader()
    batches: Any = loader.batch_sampler
    sampler: BatchSampler = batches.batch_sampler if isinstance(batches, BatchSamplerShard) else batches
    *_, last = trainer.set_initial_training_values(training, loader)
    if not 1 <= step <= last:
        raise ValueError(f"--inspect_step {step}: this run has the steps 1 to {last}.")
    at_once = training.world_size * training.gradient_accumulation_steps
    an_epoch = -(-len(sampler) // at_once)
    epoch, place = divmod(step - 1, an_epoch)
    trainer.callback_handler.train_dataloader = loader
    trainer.state.epoch = epoch
    trainer.callback_handler.on_epoch_begin(training, trainer.state, trainer.control)
    loader.set_epoch(epoch)
    return [row for batch in steps(sampler, at_once, place) for row in batch]


def steps(sampler: BatchSampler, at_once: int, place: int) -> Iterator[list[int]]:
    """The batches of one step of an epoch; where they run out at its end, what is left."""
    return islice(iter(sampler), place * at_once, (place + 1) * at_once)
