"""Tiny random checkpoints that vLLM can serve, and what the transformers engine answers with them.

Unlike `tiny`'s, they have heads of 32 and pictures of several cache blocks, as vLLM's attention needs, and never
name a special token: its output row is zero, so that it is never plausible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from matchers import Brightness
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import LLAVA_TEMPLATE, QWEN_SPECIALS, QWEN_TEMPLATE, SPECIALS, picture, tokenizer
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
)

from lvlm_guard import guard, methods
from lvlm_guard.engine.method import Method
from lvlm_guard.matching import Match
from lvlm_guard.serve.engine.arguments import request_arguments, view_arguments
from lvlm_guard.serve.engine.plugin import FAMILIES
from lvlm_guard.serve.vote.ballot import ballot_arguments, claims_of
from lvlm_guard.serve.wire import pack_mask

ARCHITECTURE = {family: architecture for architecture, family in FAMILIES.items()}


class Scored(Brightness):
    """Finds bright pixels relevant; the n-th picture of a call has the n-th score."""

    def __init__(self, scores: Sequence[float]) -> None:
        super().__init__()
        self.scores = scores

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        return [replace(match, score=s) for match, s in zip(super().__call__(images, texts), self.scores, strict=False)]


@dataclass
class Request:
    """One request, as both engines get it.

    Args:
        question: what is asked.
        pictures: what about.
        method: the guard, without its matcher; None for a plain request.
        scores: how well the matcher says each picture matches, which sets how much of it is kept.
        tokens: length of the answer.
        sampling: vLLM's sampling arguments; greedy without.
        leaves: after so many steps of the engine its client goes away; 0 for never.
    """

    question: str
    pictures: list[Image.Image]
    method: Method | None = None
    scores: tuple[float, ...] = (0.8, 0.8)
    tokens: int = 16
    sampling: dict[str, Any] = field(default_factory=lambda: {"temperature": 0})
    leaves: int = 0

    def masks(self) -> list[str]:
        """The masks that the matcher service would give."""
        matches = Scored(self.scores)(self.pictures, [self.question] * len(self.pictures))
        return [pack_mask(match.keep.numpy()) for match in matches]

    def for_vllm(self, processor: Any) -> dict[str, Any]:
        """The prompt and arguments that the front would give vLLM."""
        ids = processor.tokenizer(prompt_of(processor, self), add_special_tokens=False)["input_ids"]
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if self.pictures:
            prompt["multi_modal_data"] = {"image": self.pictures}
        if isinstance(self.method, methods.Vote):
            claims = claims_of(self.question)
            support = self.method.matcher.support(self.pictures[0], claims).tolist()
            extra = ballot_arguments(self.method, self.question, dict(zip(claims, support, strict=True)))
        elif self.method is not None:
            masks = self.masks() if isinstance(self.method, methods.AGLA) else ()
            prompt["mm_processor_kwargs"] = view_arguments(self.method, masks)
            extra = request_arguments(self.method)
        else:
            extra = None
        return {
            "prompt": prompt,
            "extra": extra,
            "tokens": self.tokens,
            "sampling": self.sampling,
            "leaves": self.leaves,
        }


def prompt_of(processor: Any, request: Request) -> str:
    """The finished prompt."""
    content = [*({"type": "image"} for _ in request.pictures), {"type": "text", "text": request.question}]
    talk = [{"role": "user", "content": content}]
    text: str = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    return text


class Reference:
    """The transformers engine over a checkpoint."""

    def __init__(self, where: Path) -> None:
        model = AutoModelForImageTextToText.from_pretrained(where, dtype=torch.float32).eval()
        self.model, self.processor = guard(model, AutoProcessor.from_pretrained(where), "apc")

    def answer(self, request: Request) -> tuple[list[int], list[float]]:
        """Tokens of a greedy answer, and the log-probability of each."""
        method: Any = request.method or False
        if isinstance(method, methods.AGLA):
            method = methods.AGLA(method.alpha, method.beta, matcher=Scored(request.scores))
        inputs = self.processor(
            images=request.pictures or None, text=prompt_of(self.processor, request), return_tensors="pt",
            add_special_tokens=False, guard_text=request.question,
        ) if request.pictures else self.processor.tokenizer(
            prompt_of(self.processor, request), return_tensors="pt", add_special_tokens=False
        )  # fmt: skip
        made = self.model.generate(
            **inputs, guard=method, max_new_tokens=request.tokens, do_sample=False, eos_token_id=None,
            return_dict_in_generate=True, output_scores=True, output_logits=False,
        )  # fmt: skip
        tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        scores = [step[0].float().log_softmax(-1) for step in made.scores]
        return tokens, [float(step[token]) for step, token in zip(scores, tokens, strict=True)]


def checkpoint(family: str, where: Path) -> Path:
    """Write a family's tiny model and processor to a folder, once."""
    if (where / "config.json").is_file():
        return where
    torch.manual_seed(11)
    model, processor = _MAKERS[family]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:  # wide enough that picture, mask and knobs change the answer
                weight.normal_(0, (1.6 if "language_model" in name else 1.3) / weight[0].numel() ** 0.5)
        model.get_input_embeddings().weight.normal_(0, 1)
        head = model.get_output_embeddings().weight
        head.normal_(0, 2.5 / head.shape[1] ** 0.5)
        head[: len(processor.tokenizer) - 256] = 0
        if head is model.get_input_embeddings().weight:  # Gemma's: not so wide that a token says but itself again
            head.mul_(0.2)
            model.model.language_model.norm.weight.fill_(4.0)
    model.eval().save_pretrained(where)
    processor.save_pretrained(where)
    weights = load_file(where / "model.safetensors")
    if family != "internvl":  # the names in released files, which vLLM reads
        weights = {_named(name): value for name, value in weights.items()}
    save_file(weights, where / "model.safetensors", metadata={"format": "pt"})
    return where


def _named(name: str) -> str:
    old, new = "vision_tower.", "vision_tower.vision_model."
    return name.replace(old, new, 1) if old in name and new not in name else name


def questions(count: int, **given: Any) -> list[Request]:
    """Requests about different pictures, of different lengths."""
    return [
        Request(f"{i}: " + "Is there a dog in the picture, or only its shadow? " * (1 + i % 3), [picture(i)], **given)
        for i in range(count)
    ]


def _text(vocab: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def _clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=8,
        projection_dim=64,
    )  # fmt: skip


_SHARED = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_SIDES = {"height": 64, "width": 64}
_SQUARE = {"size": {"shortest_edge": 64}, "crop_size": _SIDES}


def _llava() -> tuple[Any, Any]:
    t = tokenizer(SPECIALS, image_token="<image>")
    config = LlavaConfig(
        vision_config=_clip(), text_config=LlamaConfig(**_text(len(t))), image_token_index=4, image_seq_length=64
    )
    model = LlavaForConditionalGeneration(config)
    return model, LlavaProcessor(CLIPImageProcessor(**_SQUARE), t, chat_template=LLAVA_TEMPLATE, **_SHARED)


def _llava_next() -> tuple[Any, Any]:
    t = tokenizer(SPECIALS, image_token="<image>")
    grid = [[64, 128], [128, 64], [128, 128]]
    config = LlavaNextConfig(
        vision_config=_clip(), text_config=LlamaConfig(**_text(len(t))), image_token_index=4, image_grid_pinpoints=grid
    )
    images = LlavaNextImageProcessor(image_grid_pinpoints=grid, **_SQUARE)
    return LlavaNextForConditionalGeneration(config), LlavaNextProcessor(
        images, t, chat_template=LLAVA_TEMPLATE, **_SHARED
    )


def _onevision() -> tuple[Any, Any]:
    t = tokenizer([*SPECIALS, "<video>"], image_token="<image>", video_token="<video>")
    grid = [[64, 128], [128, 64], [128, 128]]
    config = LlavaOnevisionConfig(
        vision_config=_siglip(), text_config=Qwen2Config(**_text(len(t))), image_token_index=4, video_token_index=5,
        image_grid_pinpoints=grid, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    images = LlavaOnevisionImageProcessor(size=_SIDES, image_grid_pinpoints=grid)
    return LlavaOnevisionForConditionalGeneration(config), LlavaOnevisionProcessor(
        images, t, LlavaOnevisionVideoProcessor(), num_image_tokens=64, vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip


def _internvl() -> tuple[Any, Any]:
    t = tokenizer(
        [*SPECIALS[:4], "<IMG_CONTEXT>", "<img>", "</img>", "<video>"], start_image_token="<img>",
        end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    eyes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InternVLConfig(
        vision_config=eyes | {"image_size": [64, 64], "patch_size": [8, 8]}, text_config=Qwen2Config(**_text(len(t))),
        image_token_id=4, image_seq_length=16,
    )  # fmt: skip
    images = GotOcr2ImageProcessor(size=_SIDES, crop_to_patches=True, min_patches=1, max_patches=4)
    template = LLAVA_TEMPLATE.replace("<image>", "<IMG_CONTEXT>")
    return InternVLForConditionalGeneration(config), InternVLProcessor(
        images, t, InternVLVideoProcessor(), image_seq_length=16, chat_template=template
    )


def _gemma3() -> tuple[Any, Any]:
    t = tokenizer(
        [*SPECIALS[:4], "<image_soft_token>", "<start_of_image>", "<end_of_image>", *("\n" * n for n in range(1, 5))],
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>",
    )  # fmt: skip
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3Config(
        text_config=_text(len(t)) | {
            "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32, "layer_types": layers,
        },
        vision_config=_siglip(), mm_tokens_per_image=16, image_token_index=4, boi_token_index=5, eoi_token_index=6,
    )  # fmt: skip
    images = Gemma3ImageProcessor(size=_SIDES)
    template = LLAVA_TEMPLATE.replace("<image>\n", "<start_of_image>")
    return Gemma3ForConditionalGeneration(config), Gemma3Processor(
        images, t, image_seq_length=16, chat_template=template
    )


def _siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip


def _qwen3() -> tuple[Any, Any]:
    t = tokenizer(QWEN_SPECIALS, image_token="<|image_pad|>", video_token="<|video_pad|>")
    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 1e4}
    config = Qwen3VLConfig(
        text_config=_text(len(t)) | {"head_dim": 32, "rope_parameters": rope},
        vision_config={
            "depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=4, video_token_id=8, vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip
    images = Qwen2VLImageProcessor(patch_size=14, merge_size=2, min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16)
    processor = Qwen3VLProcessor(images, t, Qwen3VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    return Qwen3VLForConditionalGeneration(config), processor


def _qwen2() -> tuple[Any, Any]:
    t = tokenizer(QWEN_SPECIALS, image_token="<|image_pad|>", video_token="<|video_pad|>")
    rope = {"rope_type": "default", "type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
    eyes = {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(
        text_config=_text(len(t)) | {"rope_parameters": rope}, vision_config=eyes,
        image_token_id=4, video_token_id=8, vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip
    images = Qwen2VLImageProcessor(patch_size=14, merge_size=2, min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16)
    processor = Qwen2VLProcessor(images, t, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    return Qwen2VLForConditionalGeneration(config), processor


def _qwen() -> tuple[Any, Any]:
    t = tokenizer(QWEN_SPECIALS, image_token="<|image_pad|>", video_token="<|video_pad|>")
    rope = {"rope_type": "default", "type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        text_config=_text(len(t)) | {"rope_parameters": rope},
        vision_config={
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
            "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
        image_token_id=4, video_token_id=8, vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip
    images = Qwen2VLImageProcessor(patch_size=14, merge_size=2, min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16)
    processor = Qwen2_5_VLProcessor(images, t, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    return Qwen2_5_VLForConditionalGeneration(config), processor


_MAKERS = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _onevision,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "qwen2_5_vl": _qwen,
    "qwen2_vl": _qwen2,
    "qwen3_vl": _qwen3,
}
