"""LangChain's model profile of an ensemble: its capabilities, known before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.language_models.model_profile import ModelProfile

from adafuse_core.chat.thoughts import has_tags
from adafuse_core.config import EnsembleConfig
from adafuse_core.ensemble import Ensemble
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.context_windows import has_template_on_disk, template_on_disk, window_on_disk


def profile(name: str, config: EnsembleConfig, ensemble: Ensemble | None) -> ModelProfile:
    """The capabilities that all members have, according to their local files.

    Tools and structured output need a chat template of every member. A member that is not downloaded yet is assumed to
    have a chat template. These fields are absent if they are not known:

    - `max_input_tokens` and `max_output_tokens`, the smallest context window, which prompt and answer share;
    - `reasoning_output`: whether the chat template of every member knows thoughts, and none is told not to think;
    - `open_weights`, for members that were given as objects.

    Args:
        name: Name of the model.
        config: Config of the members that answer.
        ensemble: A ready-made ensemble, if the model uses one.
    """
    members = config.members
    if ensemble is not None and ensemble.ready_made:
        tools = ensemble.supports_tools()
        names = {member.label for member in members}
        windows = [member.context_window for member in ensemble.members if member.name in names]
        known = ModelProfile()
    else:
        tools = all(has_template_on_disk(member) is not False for member in members)
        windows = [window_on_disk(member) for member in members]
        known = ModelProfile(open_weights=True, **_reasoning(members))
    return ModelProfile(
        name=name,
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
        attachment=False,
        temperature=config.strategy.has_choice(len(members)),
        **known,
        **_sizes(windows),
    )


def _sizes(windows: Sequence[int | None]) -> ModelProfile:
    """The bounds of prompts and answers, if all context windows are known."""
    known = [window for window in windows if window is not None]
    if len(known) < len(windows):
        return ModelProfile()
    return ModelProfile(max_input_tokens=min(known), max_output_tokens=min(known))


def _reasoning(members: Sequence[MemberConfig]) -> ModelProfile:
    """Whether the members write thoughts, if all chat templates are known."""
    templates = [template_on_disk(member) for member in members]
    if None in templates:
        return ModelProfile()
    told_not_to = any(member.template_kwargs.get("enable_thinking") is False for member in members)
    return ModelProfile(reasoning_output=not told_not_to and all(has_tags(template or "") for template in templates))
