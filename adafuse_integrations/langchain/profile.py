"""LangChain's model profile of an ensemble: its capabilities, known before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.language_models.model_profile import ModelProfile

from adafuse_core.ensemble import Ensemble
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.context_windows import has_template_on_disk, window_on_disk


def profile(members: Sequence[MemberConfig], ensemble: Ensemble | None) -> ModelProfile:
    """The capabilities that all members have, according to their local files.

    Tools and structured output need a chat template of every member. A member that is not downloaded yet is assumed to
    have a chat template. The profile contains `max_input_tokens` if the context window of every member is known.

    Args:
        members: The members that answer.
        ensemble: A ready-made ensemble, if the model uses one.
    """
    ready = ensemble is not None and ensemble.ready_made
    tools = (
        ensemble.supports_tools()
        if ensemble is not None and ready
        else all(has_template_on_disk(member) is not False for member in members)
    )
    capabilities = ModelProfile(
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
    known_windows = [window for window in windows if window is not None]
    if len(known_windows) == len(windows):
        capabilities["max_input_tokens"] = min(known_windows)
    return capabilities
