"""The README's table of parameters has the names and defaults of the code; other strategies need no row."""

from __future__ import annotations

import re
from pathlib import Path

from adafuse_core.strategies import STRATEGIES
from adafuse_integrations.common.options import ENSEMBLE, GENERATION, STRATEGY, options_of

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|", re.MULTILINE)


def shown(default):
    if default is None or default in ((), {}):
        return "none"
    return f'`"{default}"`' if isinstance(default, str) else str(default)


def test_the_table_of_parameters_is_right_and_has_all_but_those_of_further_strategies():
    defaults = {name: option.default for name, option in {**ENSEMBLE, **GENERATION}.items() if name != "members"}
    for strategy in reversed(STRATEGIES.values()):  # of options of several strategies, the default of the first one
        defaults |= {name: option.default for name, option in options_of(strategy).items()}
    rows = dict(ROW.findall(README))
    assert rows.items() <= {name: shown(default) for name, default in defaults.items()}.items()
    assert set(defaults) - set(rows) <= set(STRATEGY) - set(options_of(STRATEGIES[defaults["strategy"]]))
