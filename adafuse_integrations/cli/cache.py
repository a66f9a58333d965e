"""`adafuse cache`: what is kept on disk between starts."""

from __future__ import annotations

import argparse
import json

from adafuse_core import ConfigError, disk_cache
from adafuse_integrations.cli.exit_status import DONE
from adafuse_integrations.cli.options import add_json_option

HELP = "show or delete what is kept on disk between starts, such as converted GGUF files"

_ALL = "all"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument(
        "--clear", nargs="?", const=_ALL, metavar="KIND", help="delete one kind of entries, or everything"
    )
    add_json_option(parser, "the folder with the bytes of each kind, or the freed bytes,")


def run(args: argparse.Namespace) -> int:
    """Print the folder with the size of each kind, or delete entries."""
    if args.clear is not None:
        freed = _clear(args.clear)
        print(json.dumps({"freed_bytes": freed}) if args.json else f"freed {_size(freed)}")
        return DONE
    kinds = disk_cache.sizes()
    if args.json:
        print(json.dumps({"folder": str(disk_cache.root()), "bytes": kinds}, indent=2))
        return DONE
    print(disk_cache.root())
    for kind, size in kinds.items():
        print(f"  {kind}  {_size(size)}")
    if not kinds:
        print("  empty")
    return DONE


def _clear(kind: str) -> int:
    kinds = list(disk_cache.sizes())
    if kind not in (_ALL, *kinds):
        raise ConfigError(f"nothing of kind {kind!r} is kept in {disk_cache.root()}", hint=f"it has {kinds}")
    return disk_cache.clear(None if kind == _ALL else kind)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
