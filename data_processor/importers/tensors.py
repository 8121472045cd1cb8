"""Files of torch.save and safetensors as plain values: tensors, lists and dicts, and nothing that could run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from data_processor.importers.rows import require

PYG = "torch_geometric.data."
PYG_CLASSES = {  # of a saved Data: containers of tensors
    f"{PYG}{name}"
    for name in (
        "data.Data", "data.DataEdgeAttr", "data.DataTensorAttr", "storage.BaseStorage", "storage.NodeStorage",
        "storage.EdgeStorage", "storage.GlobalStorage",
    )
}  # fmt: skip


def load_plain(path: Path) -> Any:
    """The value of a .pt or .safetensors file, read without running anything of it (`weights_only`).

    PyG's Data becomes a dict, alone and in lists; what InMemoryDataset saved becomes a list of dicts.

    Raises:
        ValueError: no such file, no file of torch.save, or one that holds other classes than tensors and PyG's Data.
    """
    if require(path).suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file ({error})") from error
    return without_classes(load_torch(path))


def load_torch(path: Path) -> Any:
    """What torch.save wrote, with PyG's classes allowed where the file holds them."""
    import torch

    try:
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no file of torch.save ({error})") from error
    refused = sorted(set(needed) - PYG_CLASSES)
    if refused:
        advice = "save tensors, lists and dicts, or PyG's Data"
        raise ValueError(f"{path} holds {refused[0]}, which could run code when it is loaded; {advice}")
    with torch.serialization.safe_globals([class_named(name) for name in needed]):
        return torch.load(path, map_location="cpu", weights_only=True)


def class_named(name: str) -> type:
    """The class of one of PYG_CLASSES."""
    module, _, attribute = name.rpartition(".")
    return vars(importlib.import_module(module))[attribute]


def without_classes(value: Any) -> Any:
    """The value with every Data as a dict, and the collated form of InMemoryDataset taken apart."""
    if isinstance(value, list | tuple):
        items = [without_classes(item) for item in value]
        collated = isinstance(value, tuple) and len(items) in (2, 3) and isinstance(items[0], dict)
        return separated(*items[:2]) if collated and isinstance(items[1], dict | None) else items
    if type(value).__module__.startswith(PYG) and not isinstance(value, type):
        return value.to_dict()
    return value


def separated(values: dict[str, Any], slices: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The items that InMemoryDataset laid end to end: item i of a key is values[key][slices[key][i]:slices[key][i+1]].

    A key without slices is the same in every item; a data set of one graph has no slices at all. Tensors of edges are
    joined by their last dimension.
    """
    if not slices:
        return [values]
    count = len(next(iter(slices.values()))) - 1
    items: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, joined in values.items():
        for number, item in enumerate(items):
            if key not in slices:
                item[key] = joined
                continue
            start, stop = int(slices[key][number]), int(slices[key][number + 1])
            if isinstance(joined, list):
                item[key] = joined[start] if stop == start + 1 else joined[start:stop]
            else:
                item[key] = joined[..., start:stop] if "index" in key else joined[start:stop]
    return items
