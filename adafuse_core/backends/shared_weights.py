"""Members that load the same weights share them: one copy in memory, for any number of members and adapters."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from adafuse_core.backends.locations import Location

logger = logging.getLogger(__name__)


class SharedWeights:
    """The loaded models of this process, of which every member runs a twin.

    A twin has modules and a config of its own, and the tensors of the original. So passes, adapters and attention
    functions of one member never concern another one, and the tensors are freed with the last twin. The originals are
    never run or changed. The caller makes sure that one thread loads at a time.
    """

    def __init__(self) -> None:
        self._originals: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._original_of: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # keeps originals as long as their twins

    def load(self, location: Location, options: Mapping[str, Any]) -> Any:
        """A twin of the model at a location, which is read only if no twin of it is in memory.

        A model that can't have twins is returned itself, and is not shared.

        Args:
            location: Location of the weights.
            options: Further arguments of `from_pretrained`.
        """
        key = _key(location, options)
        original = self._originals.get(key)
        if original is None:
            original = location.load_model(options)
        else:
            logger.info("%s is in memory already; its weights are shared", location.source)
        if (problem := _problem(original)) is None:
            try:
                made = twin(original)
            except Exception as error:  # code of a model repository may have attributes that can't be copied
                problem = f"{type(error).__name__}: {error}"
            else:
                self._originals[key] = self._original_of[made] = original
                return made
        logger.info("the weights of %s are not shared with other members: %s", location.source, problem)
        return original

    def is_shared(self, module: Any) -> bool:
        """Whether a model that `load` returned is a twin."""
        return module in self._original_of


def twin(original: Any) -> Any:
    """A copy of a model whose parameters and buffers are those of the original."""
    same: dict[int, Any] = {}
    for tensor in chain(original.parameters(), original.buffers()):
        same[id(tensor)] = tensor
        same |= {id(value): value for value in vars(tensor).values()}  # such as the scales of quantized weights
    return copy.deepcopy(original, same)


def _problem(original: Any) -> str | None:
    """Why a model can't have twins; None if it can."""
    if any(tensor.device.type == "meta" for tensor in original.parameters()):
        return "part of them is offloaded"
    packed = getattr(original, "is_loaded_in_4bit", False) and original.device.type == "cpu"
    if packed or getattr(original, "is_loaded_in_8bit", False):
        return "the first pass of bitsandbytes changes the form of its weights"
    return None


def _key(location: Location, options: Mapping[str, Any]) -> str:
    """Equal for equal files that are loaded with equal options."""
    source: Any = location.source
    if (folder := Path(source)).is_dir():
        files = sorted(file for file in folder.iterdir() if file.is_file())
        stamps = [(file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
        source = [str(folder.resolve()), stamps]  # a model that was saved again is another model
    return json.dumps([source, location.gguf_file, dict(location.options), dict(options)], sort_keys=True, default=repr)
