"""How a run publishes: the repository is there before the first step, then the model, at saves and at the end."""

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from serving.card import read_config
from serving.hub import Repository, push, reserve
from serving.publish import copy_base
from training.arguments import Arguments

logger = logging.getLogger(__name__)


def repository_of(arguments: Arguments) -> Repository:
    """What the flags say of the repository."""
    training = arguments.training
    return Repository(
        training.hub_model_id, training.hub_private_repo, training.hub_revision, arguments.run.hub_license
    )


def reserve_for(arguments: Arguments) -> None:
    """With --push_to_hub, finds out before the run whether it may publish, and makes the repository."""
    training = arguments.training
    if training.push_to_hub and training.process_index == 0 and not arguments.run.dry_run:
        reserve(repository_of(arguments))


def publish_output(arguments: Arguments) -> None:
    """With --push_to_hub, the finished folder goes to the Hub."""
    if arguments.training.push_to_hub:
        logger.info("Published: %s", push(arguments.training.output_dir, repository_of(arguments)))


def publish_folder(arguments: Arguments) -> str:
    """--publish: an earlier output goes to the Hub, with --include_base together with its base model.

    Returns:
        The address of the commit.
    """
    folder = Path(arguments.run.publish)
    if arguments.run.include_base:
        config = read_config(folder)
        copy_base(config, folder)
        config.save_pretrained(folder)
    return push(folder, repository_of(arguments))


def published_checkpoints(arguments: Arguments) -> list[TrainerCallback]:
    """The callback of --hub_strategy every_save; the Trainer's own way must then be off.

    It would send a folder that does not load yet, and a pickle of its arguments.
    """
    training = arguments.training
    strategy, training.hub_strategy = training.hub_strategy, HubStrategy.END
    every_save = training.push_to_hub and strategy == HubStrategy.EVERY_SAVE
    return [PublishedCheckpoints(repository_of(arguments))] if every_save else []


class PublishedCheckpoints(TrainerCallback):
    """Pushes the model of every checkpoint; the run waits for it, and goes on if the Hub cannot be reached.

    Args:
        repository: is there already.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        try:
            address = push(folder, self.repository, run=Path(args.output_dir))
            logger.info("Published step %d: %s", state.global_step, address)
        except ValueError as error:
            logger.warning("Step %d was not published, training goes on: %s", state.global_step, error)
