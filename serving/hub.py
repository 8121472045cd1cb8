"""Pushes a loadable folder to the Hugging Face Hub: one repository, one commit, sentences where the Hub refuses."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from modeling_graphllm import GraphLLMConfig
from serving.card import MARK, card, own_card, read_config, read_json

logger = logging.getLogger(__name__)

# what loads a model, and what tells how it was trained; nothing else of a folder is sent
PUBLISHED = (
    "config.json", "generation_config.json", "adapter_config.json", "adapter_model.safetensors", "model*.safetensors",
    "model.safetensors.index.json", "modeling_*.py", "processing_*.py", "processor_config.json", "*.jinja",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.spm", "*.model",
    "LICENSE*", "NOTICE*", "metrics.json", "run.json",
)  # fmt: skip
SOURCES = ("_name_or_path", "name_or_path")  # where a configuration was read from
MAIN = "main"


@dataclass(frozen=True)
class Repository:
    """Where a model is published, with the token of HF_TOKEN or of `hf auth login`.

    Attributes:
        name: `owner/name`.
        private: a new repository is; None leaves that to the owner's settings.
        revision: the branch that is written, made if it is missing; None for the main one.
        licence: as the Hub abbreviates it, said in the card.
    """

    name: str
    private: bool | None = None
    revision: str | None = None
    licence: str | None = None


def reserve(repository: Repository) -> None:
    """Makes the repository and its branch unless they are there; before a long run, so that it does not end in vain.

    Raises:
        ValueError: no network, no token, or one that may not write there.
    """
    api = HfApi()
    with explained(repository):
        api.create_repo(repository.name, private=repository.private, exist_ok=True)
        if repository.revision not in (None, MAIN):
            api.create_branch(repository.name, branch=repository.revision, exist_ok=True)


def push(folder: str | Path, repository: Repository, run: Path | None = None) -> str:
    """Uploads what loads the model, as one commit: until that is made, the repository shows what it showed before.

    Large files that an earlier, broken upload brought there are not sent again. Files of an earlier model that this
    one does not have leave the repository. The folder itself is not changed.

    Args:
        folder: what `save_output` or a checkpoint wrote.
        repository: made if it is missing.
        run: the folder of run.json and metrics.json, by default the same.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the folder is no model or names a base model that others do not have; or the Hub refuses.
    """
    folder = Path(folder)
    check_loads_elsewhere(folder)
    reserve(repository)
    operations = additions(folder, repository, run or folder)
    sent = {operation.path_in_repo for operation in operations}
    api = HfApi()
    with explained(repository):
        there = api.list_repo_files(repository.name, revision=repository.revision)
        gone = [CommitOperationDelete(path) for path in there if path not in sent and published(path)]
        done = api.create_commit(
            repository.name,
            [*operations, *gone],
            commit_message=f"Publish {len(operations)} files of the model",
            revision=repository.revision,
        )
    return done.commit_url


def published(path: str) -> bool:
    """Whether a file, by its path in the folder, belongs to a model: at the top, or of the base model inside it."""
    name = path.removeprefix("base/")
    return path == "README.md" or any(fnmatch(name, pattern) for pattern in PUBLISHED) and "/" not in name


def additions(folder: Path, repository: Repository, run: Path) -> list[CommitOperationAdd]:
    """The files to send; those that name the folder, or hold paths of this machine, are sent as they should read."""
    written = {"README.md": published_card(folder, repository, run).encode()}
    adapter = read_json(folder / "adapter_config.json")
    if adapter:  # transformers reads the model from here, and only this repository holds all of it
        named = adapter | {"base_model_name_or_path": repository.name, "revision": None}
        written["adapter_config.json"] = json.dumps(named, indent=2).encode()
    for name in ("run.json", "metrics.json"):
        record = read_json(run / name)
        if record:
            written[name] = json.dumps(without_paths(record), indent=2).encode()
    paths = {str(path.relative_to(folder)): path for path in [*folder.glob("*"), *folder.glob("base/*")]}
    files = {name: path for name, path in paths.items() if path.is_file() and published(name)}
    for name in ("config.json", "base/config.json", "tokenizer_config.json", "base/tokenizer_config.json"):
        if name in files:
            written[name] = json.dumps(without_paths(read_json(files[name]), SOURCES), indent=2).encode()
    return [CommitOperationAdd(name, content) for name, content in sorted((files | written).items())]


def without_paths(value: Any, keys: Sequence[str] | None = None, named: bool = True) -> Any:
    """JSON with the last names of absolute paths in place of the paths.

    Args:
        value: a mapping, a list, or what they hold.
        keys: only what stands under them is shortened; None for everything.
        named: whether `value` stands under one of them.
    """
    if isinstance(value, dict):
        return {name: without_paths(one, keys, keys is None or name in keys) for name, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one, keys, named) for one in value]
    return Path(value).name if named and isinstance(value, str) and Path(value).is_absolute() else value


def published_card(folder: Path, repository: Repository, run: Path) -> str:
    """The card under the repository's name: written anew, or the user's own with its folder renamed."""
    own = own_card(folder)
    if own is None:
        return card(folder, repository.name, repository.revision, repository.licence, run).replace(f"{MARK}\n", "")
    named = re.search(r'from_pretrained\("([^"]+)"', own)
    return own.replace(named[1], repository.name) if named else own


def check_loads_elsewhere(folder: Path) -> None:
    """Raises ValueError if the folder is no model, or if its base model is a folder of this machine."""
    config = read_config(folder)
    if not isinstance(config, GraphLLMConfig) or not config.lean:
        return
    source = config.text_model_name_or_path or ""
    if source == "./base":
        if not (folder / source / "config.json").is_file():
            raise ValueError(f"The base model of {folder} should be in its base/, which is missing. Restore it.")
    elif source.startswith(".") or not source or Path(source).is_absolute() or Path(source).is_dir():
        raise ValueError(
            f"The base model of {folder} is {source or 'not named'}, a folder of this machine: nobody else could load "
            "what would be published. Copy it in with --include_base True, or train on a base model of the Hub."
        )


@contextlib.contextmanager
def explained(repository: Repository) -> Iterator[None]:
    """Turns what the Hub or the network says into a sentence.

    Raises:
        ValueError: what was refused, why, and what to do.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE is set: nothing can be published. Unset it.") from error
    except HfHubHTTPError as error:
        raise ValueError(refused(repository, error)) from error
    except (HTTPError, OSError, RuntimeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            raise ValueError(refused(repository, cause)) from error
        raise ValueError(
            f"The connection to {HfApi().endpoint} failed ({cause or type(cause).__name__}). {repository.name} shows "
            "nothing of this upload; what has arrived is not sent again. Run it again when the network is back: "
            f"python finetune.py --publish FOLDER --hub_model_id {repository.name}"
        ) from error


def refused(repository: Repository, error: HfHubHTTPError) -> str:
    """Why the Hub did not take it, as far as the token's owner tells."""
    api, owner = HfApi(), repository.name.partition("/")[0]
    new = f"Make one with write access at {api.endpoint}/settings/tokens, and set HF_TOKEN."
    if error.response.status_code not in (401, 403, 404):
        return f"The Hub refused {repository.name}: {error.server_message or error}"
    if get_token() is None:
        return f"Publishing needs a token, and none is set. {new}"
    try:
        user = api.whoami()
    except HfHubHTTPError:
        return f"The Hub does not know the token of HF_TOKEN, or of `hf auth login`. {new}"
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        return f"The token of {user['name']} can only read. {new}"
    organisations = [one["name"] for one in user.get("orgs", [])]
    if owner not in (user["name"], *organisations):
        own = ", ".join([user["name"], *organisations])
        return (
            f"{repository.name} belongs to {owner}, where {user['name']} may not write. Set --hub_model_id to a name "
            f"below one of: {own}."
        )
    said = error.server_message or error
    return f"{user['name']} may not write to {repository.name}: {said}. Ask for write access there."
