"""Examples as modules, and a server for clients of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tests.integrations.server.conftest import small  # noqa: F401 - a fixture

EXAMPLES = Path(__file__).parents[3] / "examples"


def loaded_example(name):
    """A fresh module of an example, as an import makes it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
