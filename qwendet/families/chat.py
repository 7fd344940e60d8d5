"""The chat format that every family shares, and the names of its tokens.

system | user: image + request | assistant: answer | … | user: image + request | assistant: [prefix] answer
"""

from __future__ import annotations

from collections.abc import Sequence

START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
THOUGHT, END_OF_THOUGHT = "<think>", "</think>"
PADDING = "<|endoftext|>"
LABEL_TEXT = "<|object_ref_start|>{label}<|object_ref_end|>"
BOX_TEXT = LABEL_TEXT + "<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"
"""A box of an answer in box tokens."""
ASSISTANT = f"{START_OF_TURN}assistant\n"
"""What stands before an answer, or before the family's prefix of it."""
IN_CONFIG = {
    IMAGE_TOKEN: "image_token_id",
    VIDEO_TOKEN: "video_token_id",
    VISION_START: "vision_start_token_id",
    VISION_END: "vision_end_token_id",
}
"""Tokens whose ids ``config.json`` names, and how."""


def prompt_text(
    system_prompt: str,
    requests: Sequence[str],
    answers: Sequence[str],
    image_tokens: Sequence[int],
    answer_prefix: str,
) -> str:
    """The prompt in the families' chat format, image tokens written out, up to where the answer begins.

    ``answers`` are those of the demonstrations; there is one more request, and one more number in
    ``image_tokens`` (tokens of each image). ``answer_prefix`` stands before the student's answer in its turn.
    """
    text = f"{START_OF_TURN}system\n{system_prompt}{END_OF_TURN}\n" if system_prompt else ""
    for index, (count, request) in enumerate(zip(image_tokens, requests, strict=True)):
        image = VISION_START + IMAGE_TOKEN * count + VISION_END
        text += f"{START_OF_TURN}user\n{image}{request}{END_OF_TURN}\n{ASSISTANT}"
        text += f"{answers[index]}{END_OF_TURN}\n" if index < len(answers) else answer_prefix
    return text
