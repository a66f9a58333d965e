"""The table of tasks; each task is one file."""

from __future__ import annotations

from adafuse_core.evaluation.tasks.base import Task
from adafuse_core.evaluation.tasks.flores_de_en import FLORES_DE_EN
from adafuse_core.evaluation.tasks.flores_en_de import FLORES_EN_DE
from adafuse_core.evaluation.tasks.gsm8k import GSM8K
from adafuse_core.evaluation.tasks.jsonl import JSONL
from adafuse_core.evaluation.tasks.nq import NQ
from adafuse_core.evaluation.tasks.squad import SQUAD
from adafuse_core.evaluation.tasks.triviaqa import TRIVIAQA

TASKS: dict[str, Task] = {task.name: task for task in (NQ, TRIVIAQA, SQUAD, GSM8K, FLORES_DE_EN, FLORES_EN_DE, JSONL)}
