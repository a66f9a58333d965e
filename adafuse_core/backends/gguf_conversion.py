"""Converts GGUF files to folders that transformers loads fast, and keeps these folders on disk.

A GGUF file contains config, tokenizer and weights. transformers unpacks them at every load, which takes minutes for
large files. Each part becomes a folder of its own, so that counting tokens does not unpack weights, and different
dtypes share a tokenizer.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafuse_core import disk_cache
from adafuse_core.backends.gguf_header import elements_by_type, header_value
from adafuse_core.backends.quantization import quantization_method
from adafuse_core.errors import ModelLoadError, UnsupportedModelError

logger = logging.getLogger(__name__)

_KIND = "gguf"
_LINK = "model.gguf"
_FLOATS = {0: "float32", 1: "float16", 30: "bfloat16"}  # types of ggml that are not quantized
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

_Write = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is read from a GGUF file into a folder of its own.

    Args:
        name: Name in the log and in the key of the folder.
        read: Reads the part, and returns a function that writes it into a folder.
    """

    name: str
    read: Callable[[Path], _Write]


@contextlib.contextmanager
def opened(path: Path, part: Part) -> Iterator[tuple[str, dict[str, Any]]]:
    """The source and the options with which transformers reads a part: its folder, or the file if none can be kept."""
    if (kept := folder(path, part)) is not None:
        yield str(kept), {}
        return
    with _alone(path) as source:
        yield source, {"gguf_file": _LINK}


def folder(path: Path, part: Part, size: int = 1 << 28, **more: str) -> Path | None:
    """The folder with one part of a GGUF file, converted if there is none; None if it can't be kept on disk.

    Raises:
        UnsupportedModelError: The file is one piece of a model, or the package gguf is missing.
    """
    known = _known(path)
    facts = {"part": part.name, **more, "file": known["sha256"]} | disk_cache.versions("transformers", "gguf")
    return disk_cache.folder(_KIND, facts, lambda: _timed(path, part), size)


def load_model(path: Path, options: Mapping[str, Any]) -> Any:
    """Load the causal language model of a GGUF file, with options of `from_pretrained`.

    The weights are unpacked into the requested dtype. `"auto"` is the type of the file, or bfloat16 if it is quantized.
    A `quantization_config` of method `gguf` is left to transformers, and nothing is kept on disk.
    """
    from transformers import AutoModelForCausalLM

    if quantization_method(options.get("quantization_config")) == "gguf":
        with _alone(path) as source:
            return AutoModelForCausalLM.from_pretrained(source, gguf_file=_LINK, **options)
    known = _known(path)
    dtype = str(known["dtype"] if options["dtype"] == "auto" else options["dtype"])
    weights = Part(name="weights", read=lambda path: _read_weights(path, {"dtype": dtype}).save_pretrained)
    kept = folder(path, weights, size=known["elements"] * _BYTES[dtype], dtype=dtype)
    if kept is not None:
        return AutoModelForCausalLM.from_pretrained(kept, **{**options, "dtype": dtype})
    return _read_weights(path, {**options, "dtype": dtype})


def check_whole(name: str, pieces: int | None) -> None:
    """Refuse a file that contains only a piece of a model.

    Raises:
        UnsupportedModelError: There are several pieces.
    """
    if pieces is not None and pieces > 1:
        raise UnsupportedModelError(
            f"{name!r} is one of {pieces} pieces of a model, and transformers reads whole GGUF files only",
            hint="join them with `llama-gguf-split --merge FIRST-PIECE OUTPUT` of llama.cpp, and pass the output",
        )


def _timed(path: Path, part: Part) -> _Write:
    logger.info("converting the %s of %s, once", part.name, path.name)
    started = time.monotonic()
    write = part.read(path)
    logger.info("%s of %s converted in %.1f s", part.name, path.name, time.monotonic() - started)
    return write


def _read_config(path: Path) -> _Write:
    from transformers import AutoConfig

    with _alone(path) as source:
        write: _Write = AutoConfig.from_pretrained(source, gguf_file=_LINK).save_pretrained
    return write


def _read_tokenizer(path: Path) -> _Write:
    """The tokenizer, with the config beside it that transformers expects there."""
    from transformers import AutoTokenizer

    config = _config(path)
    with _alone(path) as source:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_LINK)
    return lambda target: (config.save_pretrained(target), tokenizer.save_pretrained(target))


def _read_weights(path: Path, options: Mapping[str, Any]) -> Any:
    import transformers

    options = {"config": _config(path), **options}
    if hasattr(transformers, "GgufConfig"):  # otherwise weights stay quantized if there are kernels for them
        options.setdefault("quantization_config", transformers.GgufConfig(dequantize=True))
    _let_transformers_switch_bars()
    with _alone(path) as source:
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            source, gguf_file=_LINK, output_loading_info=True, **options
        )
    if missing := sorted(found["missing_keys"]):
        raise ModelLoadError(
            f"{path.name!r} lacks {len(missing)} weights of the model, such as {missing[0]!r}",
            hint="get the whole file, or a safetensors version of the model",
        )
    model.hf_quantizer, model.is_quantized = None, False  # the weights are plain tensors by now
    return model


def _let_transformers_switch_bars() -> None:
    """For some architectures, the bar of the conversion ignores `transformers.utils.logging.disable_progress_bar`."""
    from transformers.utils import logging as switch

    with contextlib.suppress(ImportError):
        from transformers import modeling_gguf_pytorch_utils

        modeling_gguf_pytorch_utils.tqdm = switch.tqdm


def _config(path: Path) -> Any:
    from transformers import AutoConfig

    with opened(path, CONFIG) as (source, options):
        return AutoConfig.from_pretrained(source, **options)


CONFIG = Part(name="config", read=_read_config)
TOKENIZER = Part(name="tokenizer", read=_read_tokenizer)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[str]:
    """A folder with a link to the file: transformers would also read other files of its folder, such as tokenizers."""
    with tempfile.TemporaryDirectory(prefix="adafuse-") as source:
        link, file = Path(source) / _LINK, path.resolve()
        try:
            link.symlink_to(file)
        except OSError:  # Windows allows symbolic links to some users only
            link.hardlink_to(file)
        yield source


def _known(path: Path) -> dict[str, Any]:
    """Digest, elements and dtype of a file, remembered until the file changes."""
    _require_package(path)
    file = path.resolve()
    stat = file.stat()
    facts = {"path": str(file), "size": stat.st_size, "mtime": stat.st_mtime_ns, "inode": stat.st_ino}
    if (known := disk_cache.read_json(_KIND, facts)) is None:
        known = _examined(file)
        disk_cache.write_json(_KIND, facts, known)
    return known


def _examined(file: Path) -> dict[str, Any]:
    check_whole(file.name, header_value(file, "split.count"))
    elements = elements_by_type(file)
    if not elements:
        raise ModelLoadError(f"{file.name!r} is not a GGUF file with weights", hint="check the file")
    with file.open("rb") as opened_file:
        digest = hashlib.file_digest(opened_file, "sha256").hexdigest()
    return {"sha256": digest, "elements": sum(elements.values()), "dtype": _own_dtype(set(elements))}


def _own_dtype(kinds: set[int]) -> str:
    """The dtype of the weights in a file: the norms beside half-precision weights are often in single precision."""
    if not kinds <= _FLOATS.keys():
        return "bfloat16"
    names = {_FLOATS[kind] for kind in kinds}
    return next(name for name in ("bfloat16", "float16", "float32") if name in names)


def _require_package(path: Path) -> None:
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise UnsupportedModelError(
            f"{path.name!r} is a GGUF file, and the package gguf is missing or too old",
            hint='pip install "adafuse[gguf]"',
        )
