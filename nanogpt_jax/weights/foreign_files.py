"""Opening files that other programs wrote: `.pt`, `.bin`, safetensors and JSON, with one line for what is wrong.

Nothing here runs code out of a file: pickles are opened by torch with `weights_only=True`, or not at all.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.commands import to_install
from nanogpt_jax.data.files import refused, require_permission


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file. Raises `UserError` if it is missing, damaged or of numbers numpy has not."""
    require_permission(path)
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; get all the files of the model") from error
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({_in_short(error)}); it is cut short or damaged, get it anew"
        ) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # as the library is looking for float8
        raise UserError(
            f"{path} has tensors of a type that is not read here ({_in_short(error)}); get them in float32, float16 or "
            "bfloat16"
        ) from error


def read_bin(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by `torch.save`; see `unpickled`."""
    document = unpickled(path)
    with reading(path):
        return arrays_of(document)


def unpickled(path: Path) -> Any:
    """What `torch.save` put into a file, on the CPU, if it is made of tensors and plain values alone.

    Raises `UserError` where PyTorch is not installed, the file is missing or damaged, or it could run code.
    """
    torch = torch_for(path)
    require_permission(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # what is wrong reaches the user as an error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; check the name, or get all the files of the model") from error
    except pickle.UnpicklingError as error:
        foreign = _foreign_object(path, str(error))
        if foreign is not None:
            raise UserError(
                f"{path} holds {foreign}, which is code and not a tensor; nothing of it was run, get a file of tensors"
            ) from None
        raise UserError(
            f"{path} is not a file of tensors by torch.save; it is damaged, or of another program: get it anew"
        ) from error
    except Exception as error:  # torch raises many kinds; to a user they all mean this
        raise UserError(
            f"{path} cannot be read ({_in_short(error)}); it is cut short or damaged, get it anew"
        ) from error


def _foreign_object(path: Path, message: str) -> str | None:
    """The first object that a refused pickle calls for: as torch names it, or else as it stands in the file."""
    named = re.search(r"GLOBAL ([\w.]+)", message)
    if named:
        return named[1]
    strings: list[str] = []
    with contextlib.suppress(ValueError), path.open("rb") as file:
        for opcode, argument, _ in pickletools.genops(file):  # reads, and runs nothing
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    return None


def torch_for(path: Path) -> Any:
    """The torch module, which only `.pt` and `.bin` files need."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is PyTorch's kind of file, and PyTorch is not installed; run {to_install('torch')}"
        ) from None
    return torch


def arrays_of(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """torch's tensors as numpy's; the 16-bit types, of which numpy lacks one, are widened."""
    return {
        name: (tensor.float() if tensor.itemsize == 2 and tensor.is_floating_point() else tensor).detach().numpy()
        for name, tensor in tensors.items()
    }


def read_json(path: Path) -> Any:
    """The document in a JSON file. Raises `UserError` without the path, which `reading` adds."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise refused("it", error, "read") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not JSON ({error}); it is damaged, get it anew") from error


@contextlib.contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """Say of a complaint what it is about, and make one of what goes wrong in a document of another form than ours."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{what} is damaged, or of another program ({_in_short(error)}); get it anew") from error


def _in_short(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0][:200]}" if said else type(error).__name__
