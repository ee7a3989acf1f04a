"""Models as files: a folder of safetensors and a JSON card; nothing in it is ever executed."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pellucid.data.plain_json import plain_json
from pellucid.data.writer import check_output_path, replace
from pellucid.errors import InputError, OutputError

CARD, WEIGHTS = "card.json", "weights.safetensors"
FORMAT = "pellucid model 3"
"""Raised when networks are made otherwise, so that weights of the old make are refused."""


def check_model_path(folder: Path, overwrite: bool) -> None:
    """Raise OutputError unless a model can be written there; only a model is replaced."""
    word = "say overwrite: true in the recipe"
    check_output_path(folder, overwrite, kind="a model", marks=(CARD, WEIGHTS), word=word)


def write_model(
    folder: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Write weights and card into a new `folder`, whole or not at all; returns it."""
    check_model_path(folder, overwrite)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write_tensors(partial / WEIGHTS, tensors, {})
        checksum = hashlib.blake2b((partial / WEIGHTS).read_bytes(), digest_size=16).hexdigest()
        content = plain_json({"format": FORMAT, **card, "weights_blake2b": checksum})
        (partial / CARD).write_text(json.dumps(content, indent=1, allow_nan=False))
        replace(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(f"{folder}: the model cannot be written ({error.strerror}).") from error
    return folder


def read_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the card of a model; InputError for anything that is none."""
    if folder.is_file():
        what = "a pickle may run any program, so none is loaded" if _is_pickle(folder) else "a file"
        raise InputError(f"{folder.name}: expected a model's folder, got {what}. Use pellucid train.")
    if not (folder / CARD).is_file() or not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: no model: expected a folder with {CARD} and {WEIGHTS}.")
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder.name}: the card {CARD} is no JSON. Copy the model again.") from error
    found = card.get("format") if isinstance(card, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{folder.name}: expected the format {FORMAT!r}, got {found!r}. Train the model anew."
        )
    found = hashlib.blake2b((folder / WEIGHTS).read_bytes(), digest_size=16).hexdigest()
    if found != card.get("weights_blake2b"):
        raise InputError(f"{folder.name}: the weights are not those of the card. Copy it again.")
    return read_tensors(folder / WEIGHTS)[0], card


def write_tensors(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write tensors and JSON values into one safetensors file, replacing it when whole."""
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, partial, metadata={"values": json.dumps(plain_json(values))})
    os.replace(partial, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `write_tensors` wrote; InputError for a truncated file, or a pickle."""
    from safetensors import SafetensorError, safe_open

    if _is_pickle(path):
        raise InputError(f"{path.name}: a pickle may run any program, so none is loaded.")
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {}).get("values", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, values
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path.name}: truncated, or no safetensors file. Delete it to begin anew."
        ) from error


def _is_pickle(path: Path) -> bool:
    # torch.save writes a zip archive around a pickle.
    with path.open("rb") as file:
        begin = file.read(9)
    # safetensors begins with the length of its header, which may read like the first bytes of a pickle
    marks = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    return begin.startswith(marks) and begin[8:] != b"{"
