"""Flags -> tokenizer, splits and processor: everything that stands before the model."""

import logging
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from data_processor.dataset import ConversationDataset, GraphQADataset
from data_processor.importers.conversations import iter_conversations
from data_processor.preprocess import EncodedDataset
from data_processor.schema import Rejected
from modeling_graphllm import GraphConfig, GraphLLMConfig
from processing_graphllm import GraphLLMProcessor
from training.arguments import Arguments, GraphArguments

logger = logging.getLogger(__name__)

RawDataset = GraphQADataset | ConversationDataset
# flags whose names say where they belong; GraphConfig itself says it once
GRAPH_CONFIG_NAMES = {"num_graph_tokens": "num_tokens", "max_graph_nodes": "max_nodes"}


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns what the Hub and bitsandbytes answer for a model that cannot be had into a sentence that says what to do.

    Raises:
        ValueError: the model is gated, private, misspelt or not reachable; or nothing here can hold it quantised.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        yield
    except (OSError, RepositoryNotFoundError) as error:
        causes = [error, error.__cause__, error.__context__]
        if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated repo" in str(error):
            raise ValueError(
                f"{name} is gated: accept its terms at https://huggingface.co/{name} and log in with `hf auth login`."
            ) from error
        raise ValueError(
            f"{name!r} could not be loaded: it is neither a folder with a model nor a model of the Hub that can be "
            "reached. Check the name in --model_name_or_path; log in with `hf auth login` if it is private."
        ) from error
    except (ImportError, RuntimeError) as error:
        if "bitsandbytes" not in str(error):
            raise
        raise ValueError(
            f"--q_lora cannot be used here, as bitsandbytes has no backend for this device ({error}). Update it with "
            "`pip install -U bitsandbytes`, or leave --q_lora out."
        ) from error


def base_of(arguments: Arguments) -> tuple[str, str | None]:
    """The base model and its revision: --model_name_or_path, or what --init_from was trained on.

    Local folders come as absolute paths. --model_revision goes before the revision that --init_from names.
    """
    name, revision = arguments.model.model_name_or_path, arguments.model.model_revision
    if name is None and arguments.alignment:
        raise ValueError(
            f"--init_from {arguments.alignment} holds a reader of graphs and no language model. Pass "
            "--model_name_or_path as well."
        )
    if name is None:
        config = GraphLLMConfig.from_pretrained(arguments.run.init_from)
        name, revision = config.text_model_name_or_path, revision or config.text_model_revision
        if name.startswith("./"):
            name = str(Path(arguments.run.init_from) / name)
    return (str(Path(name).resolve()) if Path(name).is_dir() else name), revision


def load_tokenizer(arguments: Arguments) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """The base model's own tokenizer and configuration, or those of --init_from.

    Raises:
        ValueError: the model cannot be had.
    """
    start = arguments.earlier
    if start:
        with explained(start):
            return AutoTokenizer.from_pretrained(start), GraphLLMConfig.from_pretrained(start).text_config
    name, revision = base_of(arguments)
    where = {"revision": revision, "cache_dir": arguments.model.cache_dir}
    with explained(name):
        return AutoTokenizer.from_pretrained(name, **where), AutoConfig.from_pretrained(name, **where)


# --------------------------------------------------------------------------------------------------------------- data
def open_splits(arguments: Arguments, tokenizer: PreTrainedTokenizerBase) -> dict[str, RawDataset]:
    """The splits that this run reads: "train", "validation", "test".

    A dataset folder has its own. Of conversations, validation rows are taken out of the training rows.

    Raises:
        ValueError: an evaluation or a prediction is asked for, and there are no rows for it.
    """
    data, training = arguments.data, arguments.training
    wanted = {
        "train": data.train_split if training.do_train or arguments.run.dry_run else None,
        "validation": data.validation_split if training.do_eval else None,
        "test": data.test_split if training.do_predict else None,
    }
    if Path(data.path).is_dir():
        settings = (data.use_graph, data.use_text, data.text_style, data.max_text_tokens, tokenizer)
        return {key: GraphQADataset(data.path, split, *settings) for key, split in wanted.items() if split}
    if training.do_predict:
        raise ValueError(
            f"--do_predict answers the test split of a dataset folder; {data.path} holds conversations. Leave it "
            "out, and ask the finished model with `python -m evaluation generate --data FILE`."
        )
    if arguments.model.freeze_lm:
        raise ValueError(
            f"--freeze_lm True trains the graph modules only, and conversations ({data.path}) have no graph. "
            "Leave it out."
        )
    return _conversations(arguments)


def _conversations(arguments: Arguments) -> dict[str, RawDataset]:
    path, data = arguments.data.path, arguments.data
    with Rejected(folder_of_rejected(arguments) / "rejected.jsonl") as rejected:
        rows = list(iter_conversations(Path(path), rejected))
    if rejected.count:
        logger.warning("%d rows of %s left out, reasons in %s", rejected.count, path, rejected.path)
    if not arguments.training.do_eval:
        return {"train": ConversationDataset(rows, path)}
    if not data.validation:
        raise ValueError(
            "An evaluation is asked for, but --validation False leaves it no rows. Set --validation True, or "
            "--eval_strategy no."
        )
    held_out = held_out_rows(len(rows), data.validation_size, arguments.training.seed)
    return {
        "train": ConversationDataset([row for i, row in enumerate(rows) if i not in held_out], path),
        "validation": ConversationDataset([row for i, row in enumerate(rows) if i in held_out], path),
    }


def folder_of_rejected(arguments: Arguments) -> Path:
    """Where rows that cannot be used are listed: the output folder, which a dry run leaves alone."""
    if arguments.run.dry_run:
        return Path(tempfile.gettempdir()) / f"graphllm-dry-run-{os.getpid()}"
    return Path(arguments.training.output_dir)


def held_out_rows(rows: int, size: int, seed: int) -> set[int]:
    """Which of `rows` rows are kept from training: `size` of them, or a tenth where that would leave none.

    Raises:
        ValueError: there are not two rows.
    """
    if rows < 2:
        raise ValueError(f"{rows} rows cannot be split into two sets. Add rows, or set --eval_strategy no.")
    if size >= rows:
        logger.warning("--validation_size %d of %d rows leaves none to train on: a tenth is held out.", size, rows)
        size = max(1, rows // 10)
    return set(random.Random(seed).sample(range(rows), size))


def encode(
    arguments: Arguments, splits: dict[str, RawDataset], processor: GraphLLMProcessor, text_config: PreTrainedConfig
) -> dict[str, EncodedDataset]:
    """The splits as token ids; prompts are shortened to what the flags and the language model allow."""
    data, folder = arguments.data, Path(arguments.training.output_dir)
    # the underscore keeps it out of what the Trainer pushes
    cache = None if arguments.run.dry_run else data.preprocess_cache or folder / "_preprocessed"
    with arguments.training.main_process_first(desc="tokenising"):
        return {
            name: EncodedDataset(
                split,
                processor,
                max_length=longest(arguments, text_config),
                lazy=data.lazy_preprocess,
                cache_dir=cache,
                rejected=folder_of_rejected(arguments) / f"rejected_{name}.jsonl",
            )
            for name, split in splits.items()
            if name != "test"  # is answered, not trained on
        }


def longest(arguments: Arguments, text_config: PreTrainedConfig) -> int:
    """The longest example in tokens: what the flags and the language model allow."""
    limits = [arguments.model.model_max_length, text_config.to_dict().get("max_position_embeddings")]
    return min(limit for limit in limits if limit)


# ---------------------------------------------------------------------------------------------------------- processor
def graph_settings(flags: GraphArguments, dataset: RawDataset, use_graph: bool) -> GraphConfig:
    """The reader of graphs that the flags describe, with the widths of the data's features.

    A run that sees no graph carries the smallest reader there is.
    """
    if not use_graph or isinstance(dataset, ConversationDataset):
        return GraphConfig(encoder="none", feature_dim=1, num_tokens=1, projector="linear")
    given = {name: value for name, value in asdict(flags).items() if value is not None and name != "graph_token"}
    settings = {GRAPH_CONFIG_NAMES.get(name, name.removeprefix("graph_")): value for name, value in given.items()}
    return GraphConfig(feature_dim=dataset.feature_dim, edge_feature_dim=dataset.edge_feature_dim, **settings)


def build_processor(
    arguments: Arguments, tokenizer: PreTrainedTokenizerBase, graph: GraphConfig, text_config: PreTrainedConfig
) -> GraphLLMProcessor:
    """The processor of a first build.

    Raises:
        ValueError: no chat template, no pad token, or the placeholder is a word of the vocabulary.
    """
    template = arguments.model.chat_template
    return GraphLLMProcessor.from_tokenizer(
        tokenizer,
        chat_template=Path(template).read_text(encoding="utf-8") if template else None,
        graph_token=arguments.graph.graph_token,
        num_graph_tokens=graph.num_tokens,
        graph_readout=graph.readout,
        max_graph_nodes=graph.max_nodes,
        is_encoder_decoder=text_config.is_encoder_decoder,
    )
