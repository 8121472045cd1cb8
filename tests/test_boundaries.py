"""The house's walls: who imports whom, who opens which third party's door, how long a file or a function may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.py")
    if not {part for part in path.relative_to(ROOT).parts if part.startswith(".") or part in ("output", "wandb")}
)
LIBRARY = [path for path in FILES if path.parts[0] not in ("tests", "benchmarks")]
ROOMS = {"modeling_graphllm", "modeling_gfm", "modeling_aligner", "processing_graphllm", "finetune"}
ROOMS |= {"data_processor", "training", "evaluation", "serving", "benchmarks", "tests"}

MODELS = ("modeling_graphllm", "modeling_gfm", "processing_graphllm")
# stage 1 of the Translator: trains parts of modeling_graphllm and is no model of the Hub's own
ALIGNER = "modeling_aligner"
STORE = ("data_processor.schema", "data_processor.files", "data_processor.graph_store", "data_processor.graph_text")
STORE += ("data_processor.knowledge_graph", "data_processor.subgraph_store", "data_processor.vector_index")
STORE += ("data_processor.adjacency", "data_processor.graph_part")

# what is asked of a language model, and of which texts; it arrives as an argument
TEXTS = ("data_processor.schema", "data_processor.prompts", "data_processor.chunking", "data_processor.stages")
TEXTS += ("data_processor.calls", "data_processor.replies", "data_processor.text_generator")
TEXTS += ("data_processor.wording", "data_processor.known_facts")

# what a run writes its folder with, and sends it to the Hub
PUBLISHING = ("serving.publish", "serving.card", "serving.hub")

# module -> prefixes of ours that it may import; the longest matching prefix rules
MAY_IMPORT = {
    "modeling_graphllm": (),
    "modeling_gfm": (),
    "processing_graphllm": (),
    ALIGNER: ("modeling_graphllm",),
    "data_processor.schema": (),
    "data_processor.prompts": (),
    "evaluation.metrics": ("evaluation.ranked",),
    "evaluation.ranked": (),
    "evaluation.ranking": (),
    "data_processor.collator": (),
    "data_processor.key_index": (),
    "data_processor.calls": ("data_processor.key_index",),
    "data_processor.replies": ("data_processor.calls",),
    "data_processor.chat_client": ("data_processor.calls",),
    "data_processor.local_generator": ("data_processor.calls",),
    "data_processor.text_generator": (
        "data_processor.calls", "data_processor.chat_client", "data_processor.local_generator",
    ),  # fmt: skip
    "data_processor.text_encoder": ("data_processor.schema",),
    "data_processor.vector_index": ("data_processor.schema",),
    "data_processor.files": ("data_processor.schema",),
    "data_processor.embedding_cache": ("data_processor.schema", "data_processor.files"),
    "data_processor.graph_store": (*STORE, "data_processor.embedding_cache", "data_processor.edge_sentences"),
    "data_processor.edge_sentences": STORE,
    "data_processor.graph_part": STORE,
    "data_processor.adjacency": (),
    "data_processor.knowledge_graph": STORE,
    "data_processor.graph_text": STORE,
    "data_processor.subgraph_store": STORE,
    "data_processor.documents": ("data_processor.schema",),
    "data_processor.chunking": (),
    "data_processor.stages": ("data_processor.schema",),
    "data_processor.corpus": ("data_processor.chunking", "data_processor.documents", "data_processor.stages"),
    "data_processor.known_facts": ("data_processor.key_index",),
    "data_processor.collect": TEXTS,
    "data_processor.extract": (*STORE, *TEXTS, "data_processor.linking"),
    "data_processor.collection": (
        *STORE, *TEXTS, "data_processor.collect", "data_processor.extract", "data_processor.corpus",
    ),  # fmt: skip
    "data_processor.wording": TEXTS,
    "data_processor.producer": (*STORE, *TEXTS),
    "data_processor.node_stars": STORE,
    "data_processor.node_pairs": (*STORE, "data_processor.node_stars", "data_processor.dataset"),
    "data_processor.describe": (*STORE, "data_processor.node_stars"),
    "data_processor.dataset": STORE,
    "data_processor.tables": ("data_processor.schema",),
    "data_processor.passages": (
        *STORE, "data_processor.chunking", "data_processor.documents", "data_processor.text_encoder",
        "data_processor.embedding_cache",
    ),  # fmt: skip
    "data_processor.questions": (
        "data_processor.schema", "data_processor.dataset", "data_processor.tables", "data_processor.passages",
    ),  # fmt: skip
    "data_processor.preprocess": (*STORE, "data_processor.dataset"),
    "data_processor.retrieval": (*STORE, "data_processor.retrieval", "data_processor.linking"),
    "data_processor.retrieval.gfm": (*STORE, "data_processor.retrieval", "modeling_gfm"),
    "data_processor": ("data_processor",),
    "evaluation": (
        "evaluation", "data_processor.schema", "data_processor.dataset", "data_processor.text_generator",
        "data_processor.prompts", "data_processor.replies", "data_processor.wording",
    ),  # fmt: skip
    # embeds predictions; reads node scores of a graph
    "evaluation.text_metrics": ("data_processor.text_encoder",),
    "evaluation.score_command": ("evaluation", *STORE),
    "training": (*MODELS, ALIGNER, "training", "data_processor", "evaluation", *PUBLISHING),
    "evaluation.opening": ("evaluation", "data_processor"),
    # samples are shown with the picture of their subgraph
    "evaluation.report_samples": ("evaluation", *STORE, "data_processor.inspection"),
    "finetune": (*MODELS, "training", "data_processor", "evaluation", *PUBLISHING),
    "serving": (
        *MODELS, ALIGNER, "serving", *STORE, "data_processor.retrieval", "data_processor.linking",
        "data_processor.dataset", "data_processor.gfm_dataset", "data_processor.text_encoder",
        "data_processor.picture", "evaluation",
    ),  # fmt: skip
}

# third party -> the only places that may import it
DOORS = {
    "peft": ("finetune", "training", "modeling_graphllm", "serving.publish", "serving.export", "benchmarks", "tests"),
    "pcst_fast": ("data_processor.retrieval.pcst", "benchmarks", "tests"),
    "faiss": ("data_processor.vector_index", "benchmarks", "tests"),
    "openai": ("data_processor.text_generator", "data_processor.text_encoder", "tests"),
    "neo4j": ("data_processor.importers.neo4j", "tests"),
    "datasets": ("data_processor.tables", "data_processor.importers.webqsp", "evaluation.hf_metrics", "tests"),
    "sentence_transformers": ("data_processor.text_encoder", "tests"),
    "deepspeed": ("modeling_graphllm", "modeling_gfm", "training", "tests"),
    "wandb": ("training", "tests"),
    "rouge_score": ("evaluation.text_metrics", "tests"),
    "sacrebleu": ("evaluation.text_metrics", "tests"),
    "bert_score": ("evaluation.text_metrics", "tests"),
    "optuna": ("training.sweep_study",),
}
# heavy packages that a light command must not pay for when it starts
LAZY = {"torch", "transformers", "deepspeed", "bitsandbytes", "wandb", "faiss", "sentence_transformers", "datasets"}
LAZY |= {"optuna"}
LIGHT = ("data_processor.schema", "data_processor.graph_store", "data_processor.text_encoder", "data_processor.demo")
LIGHT += ("data_processor.completion", "data_processor.gfm_dataset", "evaluation.ranking")
LIGHT += ("data_processor.__main__", "evaluation.metrics", "evaluation.report", "evaluation.__main__")
LIGHT += ("data_processor.text_generator", "evaluation.report_page", "evaluation.sweep_page", "training.sweep")


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, top_level_only: bool = False) -> list[str]:
    """Names that a file imports, as `package.module` where `from package import module` may mean one."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [f"{base}.{alias.name}" if is_module(base, alias.name) else base for alias in node.names]
    return found


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring, whose length nobody regrets."""
    first = function.body[0]
    described = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    described = described and isinstance(first.value.value, str)
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if described else 0)


def is_module(package: str, name: str) -> bool:
    folder = ROOT.joinpath(*package.split("."))
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def ruled(module: str) -> tuple[str, ...] | None:
    prefixes = [one for one in MAY_IMPORT if module == one or module.startswith(one + ".")]
    return MAY_IMPORT[max(prefixes, key=len)] if prefixes else None


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in prefixes)


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_a_file_imports_only_the_rooms_it_may(path):
    module = module_name(path)
    if module.endswith("__main__"):
        return  # a program may import anything
    allowed = ruled(module)
    assert allowed is not None, f"{module} stands in no room of the table"
    ours = [name for name in imports(path) if name.split(".")[0].lstrip(".") in ROOMS or name.startswith(".")]
    assert [name for name in ours if not within(name, allowed)] == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_programs_are_imported_by_nothing_and_third_parties_have_one_door(path):
    module = module_name(path)
    for name in imports(path):
        assert not name.split(".")[0] == "benchmarks" or module.startswith(("benchmarks", "tests"))
        assert not name.endswith("__main__") or module.startswith("tests")
        door = DOORS.get(name.split(".")[0])
        assert door is None or within(module, door), f"{module} imports {name}"


@pytest.mark.parametrize("module", LIGHT)
def test_light_commands_import_nothing_heavy_when_they_start(module):
    path = Path(*module.split(".")).with_suffix(".py")
    assert (ROOT / path).is_file()
    assert LAZY.isdisjoint(name.split(".")[0] for name in imports(path, top_level_only=True))


@pytest.mark.parametrize("module", [one for one in MODELS if (ROOT / f"{one}.py").is_file()])
def test_what_ships_to_the_hub_imports_installed_packages_only(module):
    known = {"torch", "transformers", "torch_geometric", "safetensors", "numpy", "deepspeed", "peft", "numba"}
    roots = {name.split(".")[0] for name in imports(Path(f"{module}.py"))}
    assert roots <= known | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_files_and_functions_keep_their_size_and_signatures_their_types(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    # one file each, as they ship to the Hub; modeling_aligner is read beside the first
    limit = {"modeling_graphllm.py": 1020, "modeling_aligner.py": 420, "modeling_gfm.py": 1400}
    limit |= {"processing_graphllm.py": 420}
    limit = limit.get(path.name, 300)
    assert text.count("\n") <= limit
    tree = ast.parse(text)
    assert not text.strip() or path.name == "__init__.py" or ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert length(node) <= 50, f"{node.name} is {length(node)} lines long"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [one.arg for one in arguments if one.annotation is None and one.arg not in ("self", "cls")]
            assert not untyped and node.returns is not None, f"{node.name} {untyped} lacks types"


def test_half_of_all_functions_are_under_fifteen_lines():
    lengths = []
    for path in LIBRARY:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        lengths += [length(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert sorted(lengths)[len(lengths) // 2] < 15


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_no_probing_no_swallowing_no_pickle_no_eval(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {function.id for function in calls if isinstance(function, ast.Name)}
    assert called.isdisjoint({"getattr", "hasattr", "eval", "exec"})
    assert not any(name.split(".")[0] in ("pickle", "dill", "joblib") for name in imports(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            assert caught not in ("", "Exception", "BaseException"), f"line {node.lineno}"


def test_nothing_is_left_for_the_linter():
    found = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
