"""The model card: README.md of a model's folder, written from the files that training left in and beside it."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from data_processor.schema import atomic_write
from evaluation.metrics import score
from evaluation.report import read_predictions
from modeling_aligner import GraphAlignerConfig
from modeling_gfm import GFMConfig
from modeling_graphllm import GraphLLMConfig

# a card that carries this line is written anew by every save and push; without it, it is the user's own
MARK = "<!-- Written from the files of the run. Delete this line to keep what you change. -->"
LOAD = """from transformers import AutoModelForCausalLM, AutoProcessor
model = AutoModelForCausalLM.from_pretrained({where}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({where}, trust_remote_code=True)
messages = [{{"role": "user", "content": [{{"type": "graph", "graph": {graph}}}, {{"type": "text", "text": "What is it?"}}]}}]
print(processor.decode(model.generate(**processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True), max_new_tokens=16)[0]))"""  # noqa: E501
LOAD_RETRIEVER = """from transformers import AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
model = AutoModel.from_pretrained({where}, trust_remote_code=True)
graph = get_class_from_dynamic_module("modeling_gfm.GFMGraph", {where})
model.attach_graphs([graph.from_arrays([[0, 0, 1], [1, 0, 2]], num_nodes=3, num_relations=1{embeds})])"""
LOAD_ALIGNER = """from modeling_aligner import GraphAligner
model = GraphAligner.from_pretrained({where})"""
NOT_QUALITY = ("_runtime", "_per_second", "_per_s", "total_flos", "epoch", "minutes")  # how long it took is no result
NOT_QUALITY += ("parameters", "parameters_trained", "weight_bytes", "tokens", "peak_gib", "mfu")
NEEDS_PACKAGES = (
    "It needs the packages torch_geometric and peft, and `trust_remote_code=True` runs the Python files of this "
    "folder: read them first."
)
NEEDS_PROJECT = "It needs GraphLLM, whose `finetune.py --init_from` gives a language model what was aligned here."
SETTINGS = (
    "stage", "use_lora", "q_lora", "lora_r", "lora_alpha", "freeze_lm", "use_graph", "use_text", "text_style",
    "learning_rate", "graph_learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps",
    "questions_per_batch", "num_train_epochs", "max_steps", "seed", "bf16",
)  # fmt: skip


def write_card(folder: str | Path, own: str | None = None) -> None:
    """README.md of a folder that is loaded by its path; a card that the user has made his own stays.

    Args:
        folder: a loadable folder.
        own: the user's card, where what wrote the weights has put another in its place.
    """
    folder = Path(folder)
    text = own or own_card(folder) or card(folder, str(folder.resolve()))
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def own_card(folder: Path) -> str | None:
    """The text of a README.md without the line that says it may be written over."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else MARK
    return None if MARK in text else text


def card(
    folder: Path,
    name: str,
    revision: str | None = None,
    licence: str | None = None,
    run: Path | None = None,
) -> str:
    """The card's text.

    Args:
        folder: a loadable folder.
        name: what loads it: a repository or a path.
        revision: the branch of that repository, None for its main one.
        licence: as the Hub abbreviates it.
        run: the folder of run.json, metrics.json and predictions, by default the same.
    """
    run = run or folder
    config, record, metrics = read_config(folder), read_json(run / "run.json"), read_json(run / "metrics.json")
    where = f'"{name}"' + (f', revision="{revision}"' if revision else "")
    sections = [
        f"# {name}",
        about(config),
        f"```python\n{loading(config, where)}\n```",
        NEEDS_PROJECT if isinstance(config, GraphAlignerConfig) else NEEDS_PACKAGES,
        *section("Base model", [base_line(config, record)] if isinstance(config, GraphLLMConfig) else []),
        *section("Data", data_lines(record)),
        *section("Results", metrics_table(metrics)),
        *section("Ablations", ablation_table(run)),
        *section("Training", training_lines(record, metrics)),
    ]
    return "\n\n".join([front_matter(name, config, folder, record, metrics, licence) + MARK, *sections]) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file, empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_config(folder: Path) -> GraphLLMConfig | GFMConfig | GraphAlignerConfig:
    """The configuration of a language model that reads graphs, of a graph retriever, or of an alignment.

    Raises:
        ValueError: the folder holds none of them.
    """
    kind = read_json(folder / "config.json").get("model_type")
    kinds = {one.model_type: one for one in (GraphLLMConfig, GFMConfig, GraphAlignerConfig)}
    if kind not in kinds:
        found = "no config.json" if kind is None else f"a model of type {kind!r}"
        raise ValueError(f"{folder} holds {found}. Give a folder that finetune.py wrote (--output_dir).")
    return kinds[kind].from_pretrained(folder)


def front_matter(
    name: str, config: Any, folder: Path, record: dict[str, Any], metrics: dict[str, float], licence: str | None
) -> str:
    """What the Hub reads: YAML between two lines of dashes."""
    language = isinstance(config, GraphLLMConfig)
    adapter = (folder / "adapter_config.json").is_file()
    values: dict[str, Any] = {"license": licence} if licence else {}
    values["library_name"] = "transformers"
    values["pipeline_tag"] = "text-generation" if language else "graph-ml"
    values["tags"] = ["custom_code", "graphllm", "knowledge-graph", *(["lora"] if adapter else [])]
    base = base_name(config, record) if language else None
    if base is not None:
        values |= {"base_model": base, "base_model_relation": "adapter" if config.lean else "finetune"}
    values |= model_index(name, record, metrics, values["pipeline_tag"])
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def base_name(config: GraphLLMConfig, record: dict[str, Any]) -> str | None:
    """The base model's name on the Hub; None if it is a folder."""
    source = config.text_model_name_or_path or ""
    if source.startswith("."):  # copied into this folder
        source = record.get("arguments", {}).get("model_name_or_path") or ""
    is_name = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) and not Path(source).exists()
    return source if is_name else None


def about(config: GraphLLMConfig | GFMConfig | GraphAlignerConfig) -> str:
    """One paragraph: what the model is."""
    if isinstance(config, GraphAlignerConfig):
        graph = config.graph_config
        return (
            f"A graph encoder ({graph.encoder}) and a Q-Former of {graph.num_tokens} queries of width "
            f"{graph.qformer_dim}, aligned with texts: the first stage of a language model that reads graphs. Node "
            f"and edge features were made by `{config.feature_encoder}`; use the same for new graphs."
        )
    if isinstance(config, GFMConfig):
        return (
            "A graph retriever: a question and its entities -> a score for every node and document of a graph. "
            f"{config.num_layers} layers of width {config.hidden_dim}, {config.message} messages, "
            f"{config.aggregation}. Questions and relations were embedded by `{config.feature_encoder}`; use the same "
            "for new graphs."
        )
    graph = config.graph_config
    one_per_node = f"one token for each of at most {graph.max_nodes} nodes"
    tokens = f"{graph.num_tokens} tokens a graph" if graph.readout != "nodes" else one_per_node
    return (
        f"A language model that answers from graphs: {graph.encoder} encoder, {graph.projector} projector, {tokens}. "
        f"Node and edge features were made by `{config.feature_encoder}`; use the same for new graphs."
    )


def loading(config: GraphLLMConfig | GFMConfig | GraphAlignerConfig, where: str) -> str:
    """Lines that run: the vectors in them stand for those of the feature encoder."""
    if isinstance(config, GraphAlignerConfig):
        return LOAD_ALIGNER.format(where=where)
    if isinstance(config, GFMConfig):
        read = config.relation_source == "text"
        return LOAD_RETRIEVER.format(
            where=where, embeds=f", relation_embeds=[[0.1] * {config.feature_dim}]" if read else ""
        )
    graph = config.graph_config
    parts = f'"node_features": [[0.1] * {graph.feature_dim}, [0.2] * {graph.feature_dim}], "edge_index": [[0], [1]]'
    if graph.edge_feature_dim:
        parts += f', "edge_features": [[0.1] * {graph.edge_feature_dim}]'
    return LOAD.format(where=where, graph=f"{{{parts}}}")


def section(title: str, lines: list[str]) -> list[str]:
    """A heading and its lines as one part of the card; nothing where there is nothing to say."""
    return [f"## {title}\n\n" + "\n".join(lines)] if lines else []


def base_line(config: GraphLLMConfig, record: dict[str, Any]) -> str:
    """Which language model, and which commit of it."""
    name, revision = base_name(config, record), config.text_model_revision
    inside = " A copy is in `base/`." if (config.text_model_name_or_path or "").startswith(".") else ""
    if not config.lean:
        inside = " Its weights, changed, are in this folder."
    if name is None:
        shape = f"{config.text_config.num_hidden_layers} layers of width {config.hidden_size}"
        return f"A {config.text_config.model_type} model from a folder, {shape}.{inside}"
    return f"[{name}](https://huggingface.co/{name}), revision {revision or 'not recorded'}.{inside}"


def model_index(name: str, record: dict[str, Any], metrics: dict[str, float], task: str) -> dict[str, Any]:
    """The results in the form that the Hub shows beside a model; nothing where none was measured."""
    data, kept = ", ".join(data_names(record)), quality(metrics)
    if not data or not kept:
        return {}
    values = [{"type": one, "value": round(value, 4), "name": one} for one, value in kept.items()]
    result = {"task": {"type": task}, "dataset": {"name": data, "type": data}, "metrics": values}
    return {"model-index": [{"name": name, "results": [result]}]}


def quality(metrics: dict[str, float]) -> dict[str, float]:
    """The figures that tell how good a model is."""
    return {name: value for name, value in metrics.items() if not name.endswith(NOT_QUALITY)}


def data_names(record: dict[str, Any]) -> list[str]:
    """The data sets of a run by their last names."""
    paths = record.get("arguments", {}).get("data_path") or []
    return [Path(path).name for path in ([paths] if isinstance(paths, str) else paths)]


def data_lines(record: dict[str, Any]) -> list[str]:
    """The data sets by their last names, and how much of each split was read."""
    arguments, names = record.get("arguments", {}), data_names(record)
    rows = arguments.get("stage") in ("qa", "align")
    unit = "rows" if rows else f"batches of {arguments.get('questions_per_batch')} questions"
    sizes = [f"{split}: {size:,} {unit}" for split, size in record.get("sizes", {}).items()]
    return [f"* {line}" for line in (", ".join(f"`{name}`" for name in names), *sizes) if line]


def metrics_table(metrics: dict[str, float]) -> list[str]:
    """Every figure of metrics.json that tells how good the model is."""
    kept = quality(metrics)
    return ["| metric | value |", "|---|---|", *(f"| {name} | {value:.4g} |" for name, value in kept.items())] \
        if kept else []  # fmt: skip


def ablation_table(run: Path) -> list[str]:
    """Exact match of every predictions_ABLATION.jsonl beside that of predictions.jsonl."""
    found = {path.stem.removeprefix("predictions_"): path for path in sorted(run.glob("predictions_*.jsonl"))}
    if not found:
        return []
    whole = {"none": run / "predictions.jsonl"} if (run / "predictions.jsonl").is_file() else {}
    rows = []
    for name, path in (whole | found).items():
        answers = read_predictions(path)
        rows.append(f"| {name} | {len(answers)} | {score(answers)['exact_match']:.4g} |")
    return ["| taken away | questions | exact match |", "|---|---|---|", *rows]


def training_lines(record: dict[str, Any], metrics: dict[str, float]) -> list[str]:
    """Hardware, duration, versions and the settings that matter."""
    if not record:
        return []
    arguments, versions = record["arguments"], record["versions"]
    machine = f"{record.get('processes', 1)} processes, each on: {record.get('machine', 'not recorded')}"
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft") if name in versions)
    given = {name: arguments[name] for name in SETTINGS if arguments.get(name) not in (None, False)}
    return [
        f"* {machine}" + (f"; {metrics['minutes']:.1f} minutes" if "minutes" in metrics else ""),
        f"* {packages}",
        "* " + ", ".join(f"`{name} {value}`" for name, value in given.items()),
    ]
