"""What an ensemble can do, as LangChain's model profile says it. Known without loading anything."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.language_models.model_profile import ModelProfile

from adafuse_core.ensemble import Ensemble
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.context_windows import has_template_on_disk, window_on_disk


def profile(members: Sequence[MemberConfig], ensemble: Ensemble | None) -> ModelProfile:
    """What holds for all members, by the files on this machine.

    Tools and structured output need messages, so every member needs a chat template; a member that is not downloaded
    yet counts as having one. `max_input_tokens` is there if every member's window is known.

    Args:
        members: Those that answer.
        ensemble: A ready-made one, if there is one.
    """
    ready = ensemble is not None and ensemble.ready_made
    tools = (
        ensemble.supports_tools()
        if ensemble is not None and ready
        else all(has_template_on_disk(member) is not False for member in members)
    )
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
        tool_calling=tools,
        tool_choice=tools,
        tool_call_streaming=tools,
        structured_output=tools,
    )
    if ensemble is not None and ready:
        names = {member.label for member in members}
        windows = [member.context_window for member in ensemble.members if member.name in names]
    else:
        windows = [window_on_disk(member) for member in members]
    bounded = [window for window in windows if window is not None]
    if len(bounded) == len(windows):
        known["max_input_tokens"] = min(bounded)
    return known
