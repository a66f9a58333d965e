"""The README's table of parameters is that of the code: every option, with its default."""

from __future__ import annotations

import re
from pathlib import Path

from adafuse_core.strategies import STRATEGIES
from adafuse_integrations.common.options import ENSEMBLE, GENERATION, STRATEGY, options_of

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|", re.MULTILINE)


def shown(default):
    if default is None or default == ():
        return "none"
    return f'`"{default}"`' if isinstance(default, str) else str(default)


def test_the_table_of_parameters_is_complete_and_right():
    defaults = {name: option.default for name, option in {**ENSEMBLE, **GENERATION}.items() if name != "members"}
    for strategy in STRATEGIES.values():
        defaults |= {name: option.default for name, option in options_of(strategy).items()}
    assert set(STRATEGY) <= set(defaults)
    assert dict(ROW.findall(README)) == {name: shown(default) for name, default in defaults.items()}
