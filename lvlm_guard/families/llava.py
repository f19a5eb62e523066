"""LLaVA-1.5 and its kin (BakLLaVA, ...): one square crop a picture, always the same number of image tokens."""

from typing import ClassVar

from lvlm_guard.families.family import Family

TURNS = (
    (r"USER:\s", r"\s*ASSISTANT:"),  # vicuna_v1, llava_v1: LLaVA-1.5 and LLaVA-NeXT on Vicuna
    (r"\[INST\]", r"\[/INST\]"),  # Mistral
    (r"<\|im_start\|>user\n?", r"<\|im_end\|>"),  # ChatML: Hermes, Yi, Qwen
    (r"<\|start_header_id\|>user<\|end_header_id\|>\s*", r"<\|eot_id\|>"),  # Llama 3
    (r"### (?:Human|Instruction|User):", r"### (?:Assistant|Response):"),
)


class Llava(Family):
    """`LlavaForConditionalGeneration`."""

    name: ClassVar[str] = "llava"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    processors: ClassVar[tuple[str, ...]] = ("LlavaProcessor",)
    turns: ClassVar[tuple[tuple[str, str], ...]] = TURNS
