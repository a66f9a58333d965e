"""AdaFuse for lm-evaluation-harness: `EnsembleLM`, a model of the harness, and `evaluate`.

The harness has no way to register models of other packages by name, so an ensemble is passed as an object:
`evaluate(ensemble, ["arc_easy"])`, or `lm_eval.simple_evaluate(model=EnsembleLM(ensemble), ...)`.
"""

from adafuse_integrations.lm_eval.model import EnsembleLM
from adafuse_integrations.lm_eval.running import evaluate

__all__ = ["EnsembleLM", "evaluate"]
