"""Fixtures of all tests: a tokenizer built in memory, tiny random models, and a graph drawn by hand."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GRAPHLLM_DATA", ROOT.parent / "shared" / "data"))
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FEATURES, EDGE_FEATURES = 6, 5


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, for tests marked `data`."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}: set GRAPHLLM_DATA")
    return DATA


def build_tokenizer():
    """A byte-level tokenizer of 265 tokens: any text is encoded, nothing is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE
    )


@pytest.fixture
def tiny_tokenizer():
    return build_tokenizer()


def build_language_model(vocab_size: int = 261, **changes):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def aligned(model):
    """The model with every weight in memory of its own; a weight that was loaded lies anywhere in its file's memory.

    On some processors the rounding of a sum depends on where its numbers begin, so that equal weights give equal bits
    only from equal beginnings.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@pytest.fixture(scope="session")
def language_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with its tokenizer, as a local folder."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    build_language_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def build_model(language_model_folder: Path) -> Callable:
    """`build_model(encoder="gat", readout="nodes", ...)` -> (model, processor), randomly initialised from one seed."""
    import torch
    from transformers import AutoTokenizer

    from modeling_graphllm import GraphConfig, GraphLLMForConditionalGeneration
    from processing_graphllm import GraphLLMProcessor

    def build(**graph_settings):
        defaults = {
            "feature_dim": FEATURES,
            "edge_feature_dim": EDGE_FEATURES,
            "hidden_dim": 8,
            "num_layers": 2,
            "num_heads": 2,
            "num_tokens": 3,
            "projector_hidden_dim": 12,
        }
        config = GraphConfig(**{**defaults, **graph_settings})
        tokenizer = AutoTokenizer.from_pretrained(language_model_folder)
        processor = GraphLLMProcessor.from_tokenizer(
            tokenizer,
            num_graph_tokens=config.num_tokens,
            graph_readout=config.readout,
            max_graph_nodes=config.max_nodes,
        )
        torch.manual_seed(1)
        model = GraphLLMForConditionalGeneration.from_components(
            str(language_model_folder), config, graph_token_id=processor.graph_token_id, feature_encoder="hashing:6"
        )
        return model.eval(), processor

    return build


@pytest.fixture
def toy_graph() -> dict:
    """Six nodes, seven edges.

    0 -> 1 -> 2 -> 0 (a triangle), 2 -> 3, 3 -> 4, 1 -> 4, 5 -> 4
    """
    import torch

    generator = torch.Generator().manual_seed(7)
    return {
        "node_features": torch.randn(6, FEATURES, generator=generator),
        "edge_index": torch.tensor([[0, 1, 2, 2, 3, 1, 5], [1, 2, 0, 3, 4, 4, 4]]),
        "edge_features": torch.randn(7, EDGE_FEATURES, generator=generator),
    }


@pytest.fixture
def ask(toy_graph: dict) -> Callable:
    """`ask("who?", graphs, answer)` -> messages; by default one toy graph."""

    def build(
        question: str = "who wrote it?", graphs: list[dict] | None = None, answer: str | None = None
    ) -> list[dict]:
        items = [{"type": "graph", "graph": graph} for graph in ([toy_graph] if graphs is None else graphs)]
        messages = [{"role": "user", "content": [*items, {"type": "text", "text": question}]}]
        return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]

    return build


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium that reports its console and its requests."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("pip install selenium")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000",
                 "--disable-background-networking", "--disable-component-update"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(driver))
    yield chrome
    chrome.quit()
