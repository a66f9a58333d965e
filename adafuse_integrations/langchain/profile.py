"""What an ensemble can do, as LangChain's model profile says it. Known without loading anything."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.language_models.model_profile import ModelProfile

from adafuse_core.ensemble import Ensemble
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.context_windows import window_on_disk


def profile(members: Sequence[MemberConfig], ensemble: Ensemble | None) -> ModelProfile:
    """What holds for all members. `max_input_tokens` is there if every member's window is known without a download.

    Args:
        members: Those that answer.
        ensemble: A ready-made one, if there is one.
    """
    known = ModelProfile(
        text_inputs=True,
        image_inputs=False,
        image_url_inputs=False,
        pdf_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        image_tool_message=False,
        pdf_tool_message=False,
        text_outputs=True,
        image_outputs=False,
        audio_outputs=False,
        video_outputs=False,
        tool_calling=True,
        tool_choice=True,
        tool_call_streaming=True,
        structured_output=True,
    )
    if ensemble is not None and ensemble.ready_made:
        names = {member.label for member in members}
        windows = [member.context_window for member in ensemble.members if member.name in names]
    else:
        windows = [window_on_disk(member) for member in members]
    bounded = [window for window in windows if window is not None]
    if len(bounded) == len(windows):
        known["max_input_tokens"] = min(bounded)
    return known
