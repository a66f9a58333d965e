"""Quantized weights: how a loaded model shows them, and what is missing if they can't be loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from adafuse_core.disk_cache import versions
from adafuse_core.errors import AdaFuseError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig

# By the `quant_method` of transformers: the packages with which it reads the weights.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "torchao": ("torchao",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "hqq": ("hqq",),
    "quanto": ("optimum-quanto",),
    "auto-round": ("auto-round",),
}
_IN_EXTRA = ("torchao", "bitsandbytes", "compressed-tensors")  # of our extra `quantized`


def quantization_method(settings: Any) -> str | None:
    """The `quant_method` of a quantization config, which is a mapping or an object of transformers."""
    if settings is None:
        return None
    method = _fields(settings).get("quant_method")
    return getattr(method, "value", method)


def packages(method: str | None) -> tuple[str, ...]:
    """The packages that a quantization method needs; none if it is unknown."""
    return PACKAGES.get(method or "", ())


def install_command(method: str | None) -> str:
    """The command that installs the packages of a quantization method."""
    needed = packages(method)
    return f"pip install {' '.join(needed)}" if set(needed) - {*_IN_EXTRA} else 'pip install "adafuse[quantized]"'


def quantization_name(settings: Any) -> str | None:
    """Method and kind of a quantization, such as "torchao Int8WeightOnlyConfig"; None for no quantization."""
    if settings is None:
        return None
    parts = quantization_method(settings), _kind(_fields(settings))
    return " ".join(str(part) for part in parts if part) or None


@contextmanager
def quantization_errors(config: MemberConfig, architecture: Any) -> Iterator[None]:
    """Turn any error of loading a quantized model into one that names the quantization and a remedy."""
    settings = config.quantization_config or getattr(architecture, "quantization_config", None)
    name = quantization_name(settings)
    try:
        yield
    except AdaFuseError:
        raise
    except Exception as error:  # transformers and the packages of the methods raise many types
        if name is None:
            raise
        method = quantization_method(settings)
        installed = versions(*packages(method))
        missing = [package for package in packages(method) if installed[package] is None]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModelError(
            f"can't load {config.model!r}, whose weights are quantized with {name}: {reason}"
            + (f" (not installed: {', '.join(missing)})" if missing else ""),
            hint=install_command(method)
            if missing
            else f"check quantization_config, and whether {name} supports dtype={config.dtype!r} and this device; some "
            "methods need a GPU. The cause is chained to this error",
        ) from error


def _kind(fields: Mapping[str, Any]) -> str:
    if isinstance(kind := fields.get("quant_type"), Mapping):  # torchao
        return str(kind.get("default", {}).get("_type", ""))
    if fields.get("load_in_4bit"):
        return str(fields.get("bnb_4bit_quant_type", "fp4"))
    if fields.get("load_in_8bit"):
        return "int8"
    return str(fields.get("format") or fields.get("weights") or "") or (
        f"{fields['bits']} bits" if "bits" in fields else ""
    )


def _fields(settings: Any) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = settings if isinstance(settings, Mapping) else settings.to_dict()
    return fields
