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
from data_processor.questions import QuestionDataset, open_questions, without_graph
from data_processor.schema import Rejected
from modeling_graphllm import GraphConfig, GraphLLMConfig
from processing_graphllm import GraphLLMProcessor
from training.arguments import Arguments

logger = logging.getLogger(__name__)

RawDataset = GraphQADataset | QuestionDataset | ConversationDataset
# what T5 and its kin are given, which have no chat template: the words, the end token, and the answer in the decoder
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ eos_token }}{{ message['content'] }}"
    "{% else %}{{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ eos_token }}{% endif %}"
)
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

    A dataset folder has its own; a table may. Of conversations, validation rows are taken out of the training rows.

    Raises:
        ValueError: an evaluation or a prediction is asked for, and there are no rows for it.
    """
    data, training = arguments.data, arguments.training
    wanted = {
        "train": data.train_split if training.do_train or arguments.run.dry_run else None,
        "validation": data.validation_split if training.do_eval else None,
        "test": data.test_split if training.do_predict else None,
    }
    if without_graph(data.path, data.context, data.columns):
        return _questions(arguments, wanted, tokenizer)
    if Path(data.path).is_dir():
        soft = arguments.model.prompt_tuning > 0
        shown = (data.use_graph, data.use_text, data.text_style, data.max_text_tokens)
        settings = (*shown, tokenizer, soft, readout_of(arguments))
        return {key: GraphQADataset(data.path, split, *settings) for key, split in wanted.items() if split}
    if training.do_predict:
        raise ValueError(
            f"--do_predict answers the test split of a dataset folder or table; {data.path} holds conversations. "
            "Leave it out, and ask the finished model with `python -m evaluation generate --data FILE`."
        )
    if arguments.model.freeze_lm or arguments.model.prompt_tuning:
        raise ValueError(
            f"--freeze_lm True and --prompt_tuning train what reads graphs, and conversations ({data.path}) have "
            "no graph. Leave them out."
        )
    return _conversations(arguments)


def readout_of(arguments: Arguments) -> str:
    """The read-out of the model to be: that of --init_from, of an alignment, or of the flags."""
    if arguments.earlier:
        return GraphLLMConfig.from_pretrained(arguments.earlier).graph_config.readout
    return "qformer" if arguments.alignment else arguments.graph.graph_readout or GraphConfig.readout


def tell_of_centres(dataset: GraphQADataset) -> None:
    """Warns of questions without a node to centre the read-out on."""
    if count := dataset.without_centre():
        logger.warning(
            "%d of %d questions of %s have no seed node in their subgraph, and the read-out is centred on its first "
            "node instead. Run `python -m data_processor link`, and `retrieve --method pagerank`, which keeps seeds.",
            count, len(dataset), dataset.path,
        )  # fmt: skip


def _questions(
    arguments: Arguments, wanted: dict[str, str | None], tokenizer: PreTrainedTokenizerBase
) -> dict[str, RawDataset]:
    with Rejected(folder_of_rejected(arguments) / "rejected.jsonl") as rejected:
        with arguments.training.main_process_first(desc="reading the questions"):
            cache = cache_folder(arguments)
            opened = open_questions(arguments.data.path, wanted, arguments.flat(), rejected, tokenizer, cache)
    if rejected.count:
        logger.warning("%d rows of %s left out, reasons in %s", rejected.count, arguments.data.path, rejected.path)
    return opened


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
    data, cache = arguments.data, cache_folder(arguments)
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


def cache_folder(arguments: Arguments) -> Path | None:
    """Where token ids and embeddings are kept from run to run, if they are."""
    if arguments.run.dry_run or arguments.data.no_cache:
        return None
    # the underscore keeps it out of what the Trainer pushes
    return Path(arguments.data.preprocess_cache or Path(arguments.training.output_dir) / "_preprocessed")


def longest(arguments: Arguments, text_config: PreTrainedConfig) -> int:
    """The longest example in tokens: what the flags and the language model allow."""
    limits = [arguments.model.model_max_length, text_config.to_dict().get("max_position_embeddings")]
    return min(limit for limit in limits if limit)


# ---------------------------------------------------------------------------------------------------------- processor
def graph_settings(arguments: Arguments, dataset: RawDataset) -> GraphConfig:
    """The reader of graphs that the flags describe, with the widths of the data's features.

    A run that sees no graph carries the smallest reader there is; its null vector becomes the tokens of
    --prompt_tuning.
    """
    if not (arguments.data.use_graph and isinstance(dataset, GraphQADataset)):
        tokens = max(1, arguments.model.prompt_tuning)
        return GraphConfig(encoder="none", feature_dim=1, num_tokens=tokens, projector="linear")
    flags = arguments.graph
    given = {name: value for name, value in asdict(flags).items() if value is not None and name != "graph_token"}
    settings = {GRAPH_CONFIG_NAMES.get(name, name.removeprefix("graph_")): value for name, value in given.items()}
    return GraphConfig(feature_dim=dataset.feature_dim, edge_feature_dim=dataset.edge_feature_dim, **settings)


def build_processor(
    arguments: Arguments, tokenizer: PreTrainedTokenizerBase, graph: GraphConfig, text_config: PreTrainedConfig
) -> GraphLLMProcessor:
    """The processor of a first build; an encoder-decoder without a chat template gets a plain one.

    Raises:
        ValueError: no chat template, no pad token, or the placeholder is a word of the vocabulary.
    """
    named, plain = arguments.model.chat_template, text_config.is_encoder_decoder and not tokenizer.chat_template
    template = Path(named).read_text(encoding="utf-8") if named else PLAIN_TEMPLATE if plain else None
    return GraphLLMProcessor.from_tokenizer(
        tokenizer,
        chat_template=template,
        graph_token=arguments.graph.graph_token,
        num_graph_tokens=graph.num_tokens,
        graph_readout=graph.readout,
        max_graph_nodes=graph.max_nodes,
        is_encoder_decoder=text_config.is_encoder_decoder,
    )
