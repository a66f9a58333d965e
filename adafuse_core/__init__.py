"""AdaFuse: several open LLMs with different tokenizers decode together, word by word, and answer as one.

Importing this package loads neither torch nor transformers; public names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adafuse_core.calls import InvalidToolCall, ToolCall
    from adafuse_core.chat.grammar import Grammar
    from adafuse_core.chat.messages import Message
    from adafuse_core.config import EnsembleConfig, GenerationParams
    from adafuse_core.ensemble import Ensemble
    from adafuse_core.errors import (
        AdaFuseError,
        CancelledError,
        ConfigError,
        ContextOverflowError,
        DeadlineError,
        MemberError,
        ModelLoadError,
        ModelNotFoundError,
        NonFiniteLogitsError,
        PromptError,
        TemplateError,
        TokenizerMismatchError,
        UnsupportedModelError,
        VocabularyError,
    )
    from adafuse_core.events import (
        Event,
        Finished,
        MemberDropped,
        ReasoningDelta,
        RoundDone,
        TextDelta,
        ToolCallDelta,
        ToolCallDone,
    )
    from adafuse_core.generation import Generation, collect
    from adafuse_core.member_config import MemberConfig
    from adafuse_core.members.scripted import ScriptedMember
    from adafuse_core.rounds import Candidate, Draft, LibraryText, Round, Score, Scored, Span, Usage
    from adafuse_core.trace import Trace

__version__ = "0.1.0"

_NAMES = {
    "adafuse_core.calls": ["InvalidToolCall", "ToolCall"],
    "adafuse_core.chat.grammar": ["Grammar"],
    "adafuse_core.chat.messages": ["Message"],
    "adafuse_core.config": ["EnsembleConfig", "GenerationParams"],
    "adafuse_core.member_config": ["MemberConfig"],
    "adafuse_core.ensemble": ["Ensemble"],
    "adafuse_core.generation": ["Generation", "collect"],
    "adafuse_core.errors": [
        "AdaFuseError",
        "CancelledError",
        "ConfigError",
        "ContextOverflowError",
        "DeadlineError",
        "MemberError",
        "ModelLoadError",
        "ModelNotFoundError",
        "NonFiniteLogitsError",
        "PromptError",
        "TemplateError",
        "TokenizerMismatchError",
        "UnsupportedModelError",
        "VocabularyError",
    ],
    "adafuse_core.events": [
        "Event",
        "Finished",
        "MemberDropped",
        "ReasoningDelta",
        "RoundDone",
        "TextDelta",
        "ToolCallDelta",
        "ToolCallDone",
    ],
    "adafuse_core.members.scripted": ["ScriptedMember"],
    "adafuse_core.rounds": ["Candidate", "Draft", "LibraryText", "Round", "Score", "Scored", "Span", "Usage"],
    "adafuse_core.trace": ["Trace"],
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "AdaFuseError",
    "CancelledError",
    "Candidate",
    "ConfigError",
    "ContextOverflowError",
    "DeadlineError",
    "Draft",
    "Ensemble",
    "EnsembleConfig",
    "Event",
    "Finished",
    "Generation",
    "GenerationParams",
    "Grammar",
    "InvalidToolCall",
    "LibraryText",
    "MemberConfig",
    "MemberDropped",
    "MemberError",
    "Message",
    "ModelLoadError",
    "ModelNotFoundError",
    "NonFiniteLogitsError",
    "PromptError",
    "ReasoningDelta",
    "Round",
    "RoundDone",
    "Score",
    "Scored",
    "ScriptedMember",
    "Span",
    "TemplateError",
    "TextDelta",
    "TokenizerMismatchError",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallDone",
    "Trace",
    "UnsupportedModelError",
    "Usage",
    "VocabularyError",
    "collect",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
