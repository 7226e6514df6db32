"""A saved softmax layer: one file in the safetensors layout (partitions/tensors.py).

    weight             float32 [C, D]
    bias               float32 [C], if it has one
    optimizer_state    float32 [C, 0, 1 or 2], of the fused optimizer
    removed            uint8 [C], or [0]: no class was
    metadata           format_version; layer: the name of its class; settings: JSON, the keyword
                       arguments of its constructor

and of an LSHSoftmax

    frequencies        float64 [C], or [0]: classes are in the order of their frequency
    num_steps          int64 [1]; draws are a function of the seed and this
    num_touches        int64 [2]: rows updated outside the head, in all and before the last build
    retriever.<name>   what the retriever keeps, if it was built
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from partitions import tensors
from partitions.durable import replacing
from partitions.errors import DataError

FORMAT_VERSION = 3


@dataclass(frozen=True)
class Saved:
    settings: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]  # memory-mapped, read-only


def write(
    path: Path, layer: str, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Takes the place of `path` only when all went well."""
    metadata = {"format_version": str(FORMAT_VERSION), "layer": layer}
    with replacing(path) as file:
        tensors.write(file, arrays, metadata | {"settings": json.dumps(settings)})


def read(path: Path, layer: str) -> Saved:
    """Raises DataError, which names the file."""
    if not path.is_file():
        raise DataError(f"{path} is missing.")
    found = tensors.read(path)
    version, kind = found.metadata.get("format_version"), found.metadata.get("layer")
    if version != str(FORMAT_VERSION) or kind != layer:
        raise DataError(
            f"{path} is not a saved {layer} of format version {FORMAT_VERSION}: it says it is a "
            f"{kind} of version {version}."
        )
    try:
        return Saved(json.loads(found.metadata["settings"]), found.arrays)
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} was altered: its settings can't be read ({error}).") from None
