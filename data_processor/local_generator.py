"""A language model on this machine: the backends `local` (transformers) and `vllm`, batches of like length."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from data_processor.calls import CUT, Reply, Request

if TYPE_CHECKING:
    import torch

ROUND = 4  # batches that are sorted by length together


class LocalModel:
    """The backend `local`: transformers' generate, the tokenizer's chat template.

    Args:
        name: a model on the Hub or a folder.
        sampling: temperature (0 for the likeliest token) and top_p.
        batch_size: prompts a batch.

    Raises:
        ValueError: the model cannot be had, or its tokenizer has no chat template.
    """

    def __init__(self, name: str, sampling: dict[str, float], batch_size: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.tokenizer = load_tokenizer(name)
        self.model, self.sampling, self.capacity = name, sampling, ROUND * batch_size // 2
        self._batch_size = batch_size
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._language_model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").to(self._device).eval()
        self.context = context_of(self._language_model.config.to_dict())
        self._waiting: list[Request] = []

    def start(self, request: Request) -> None:
        """Takes a call."""
        self._waiting.append(request)

    def finished(self) -> list[tuple[Request, Reply]]:
        """All calls taken with their replies: sorted by length, so that little is padded."""
        waiting, self._waiting = self._waiting, []
        prompts = [(request, self._prompt(request)) for request in waiting]
        replies = [(request, self._too_long(request, ids)) for request, ids in prompts if not self._fits(request, ids)]
        fitting = sorted((pair for pair in prompts if self._fits(*pair)), key=lambda pair: len(pair[1]), reverse=True)
        for start in range(0, len(fitting), self._batch_size):
            replies += self._batch(fitting[start : start + self._batch_size])
        return replies

    def close(self) -> None:
        """Nothing to end."""

    def _prompt(self, request: Request) -> list[int]:
        chat = list(request.messages)
        return self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)

    def _fits(self, request: Request, ids: list[int]) -> bool:
        return self.context is None or len(ids) + request.max_new_tokens <= self.context

    def _too_long(self, request: Request, ids: list[int]) -> Reply:
        needed = f"a prompt of {len(ids)} tokens and a reply of up to {request.max_new_tokens}"
        return Reply(error=f"{needed} do not fit the model's {self.context}; set --chunk_size_by_token lower")

    def _batch(self, pairs: list[tuple[Request, list[int]]]) -> list[tuple[Request, Reply]]:
        import torch

        longest = max(len(ids) for _, ids in pairs)
        limit = max(request.max_new_tokens for request, _ in pairs)
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        rows = [[padding] * (longest - len(ids)) + ids for _, ids in pairs]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for _, ids in pairs]
        with torch.inference_mode():
            found = self._language_model.generate(
                input_ids=torch.tensor(rows, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                max_new_tokens=limit,
                pad_token_id=padding,
                **choose(self.sampling),
            )
        return [self._reply(*pair, row[longest:]) for pair, row in zip(pairs, found.cpu(), strict=True)]

    def _reply(self, request: Request, prompt: list[int], row: torch.Tensor) -> tuple[Request, Reply]:
        """The new tokens of one row (up to the first end token and the request's own limit) as a reply."""
        ends = self._language_model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        ids = row.tolist()[: request.max_new_tokens]
        stop = next((place for place, token in enumerate(ids) if token in ends), None)
        text = self.tokenizer.decode(ids[:stop], skip_special_tokens=True)
        new = len(ids) if stop is None else stop + 1
        return request, Reply(text, None, "stop" if stop is not None else CUT, len(prompt), new)


class VllmModel:
    """The backend `vllm`: vLLM in this process; its scheduler batches, its structured output keeps the schema.

    Not run so far: vLLM needs a GPU. `vllm serve MODEL` with `--backend api` asks the same engine.
    """

    def __init__(self, name: str, sampling: dict[str, float]) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError("--backend vllm needs vLLM: pip install vllm, or choose --backend local or api")
        import vllm

        self.model, self.sampling, self.capacity = name, sampling, 256
        self.tokenizer = load_tokenizer(name)
        self._vllm, self._engine = vllm, vllm.LLM(model=name)
        self._waiting: list[Request] = []

    def start(self, request: Request) -> None:
        """Takes a call."""
        self._waiting.append(request)

    def finished(self) -> list[tuple[Request, Reply]]:
        """All calls taken with their replies."""
        waiting, self._waiting = self._waiting, []
        settings = [self._settings(request) for request in waiting]
        outputs = self._engine.chat([list(request.messages) for request in waiting], settings, use_tqdm=False)
        return [(request, self._reply(output)) for request, output in zip(waiting, outputs, strict=True)]

    def _settings(self, request: Request) -> Any:
        from vllm.sampling_params import StructuredOutputsParams

        shape = StructuredOutputsParams(json=request.schema) if request.schema else None
        limits = {"max_tokens": request.max_new_tokens, "structured_outputs": shape}
        return self._vllm.SamplingParams(**self.sampling, **limits)

    def _reply(self, output: Any) -> Reply:
        best = output.outputs[0]
        return Reply(best.text, None, best.finish_reason, len(output.prompt_token_ids), len(best.token_ids))

    def close(self) -> None:
        """Nothing to end."""


def open_local(kind: str, name: str, sampling: dict[str, float], batch_size: int) -> LocalModel | VllmModel:
    """The backend `local` or `vllm`."""
    return VllmModel(name, sampling) if kind == "vllm" else LocalModel(name, sampling, batch_size)


def load_tokenizer(name: str) -> Any:
    """A model's own tokenizer.

    Raises:
        ValueError: it cannot be had, or has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ValueError(
            f"{name!r} could not be loaded: it is neither a folder with a model nor a model of the Hub that can be "
            "reached. Check --model; log in with `hf auth login` if it is gated or private"
        ) from error
    if tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {name!r} has no chat template; choose a model tuned for chats")
    return tokenizer


def context_of(config: dict[str, Any]) -> int | None:
    """The number of tokens that a model reads and writes at most, None where its configuration does not say."""
    return config.get("max_position_embeddings") or config.get("n_positions")


def choose(sampling: dict[str, float]) -> dict[str, Any]:
    """How the next token is chosen, in generate's words."""
    if sampling["temperature"] == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": sampling["temperature"], "top_p": sampling["top_p"], "top_k": 0}
