"""Random models of real proportions: what a guard costs where the embedded model's tiny ones would hide it.

LLaVA-1.5-7B has a language model of 6.7 billion weights, a tower of 4.5 % and, in BLIP-ITM-large, a matcher of 6.6 % of
that, and shows 576 image tokens. A shape keeps those shares. Weights are random, so that answers mean nothing; the head
is scaled so that the share of steps at which more than one token is plausible is the embedded model's at captions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from lvlm_guard.errors import KnobError

UNDECIDED = 0.14
"""Share of caption steps at which two tokens or more are plausible at beta .5; the embedded model's."""

BETA = 0.5


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model, a tower and a matcher; heads are 64 wide.

    Args:
        width, layers, inner, vocabulary: of the language model.
        sees, sees_layers: width and layers of both towers.
        reads, reads_layers: width and layers of the matcher's text encoder.
        side, patch: pixels of the picture and of an image token.
        matched: pixels of the matcher's picture.
    """

    width: int
    layers: int
    inner: int
    vocabulary: int
    sees: int
    sees_layers: int
    reads: int
    reads_layers: int
    side: int = 336
    patch: int = 14
    matched: int = 384


SHAPES = {
    "1b": Shape(2048, 18, 5504, 32064, 576, 12, 256, 12),
    "tiny": Shape(64, 2, 128, 512, 64, 2, 64, 3, side=56, matched=64),
}


def shape_of(name: str) -> Shape:
    """Return a shape by name; raises `KnobError`."""
    if name not in SHAPES:
        raise KnobError(f"shape is {name!r}: give one of {', '.join(SHAPES)}.")
    return SHAPES[name]


def random_pair(shape: Shape, seed: int = 0, dtype: torch.dtype | str = torch.float32) -> tuple[Any, Any]:
    """Return a LLaVA of this shape with random weights, and a processor with the embedded model's words."""
    import transformers as hf

    from lvlm_guard.embedded import MODEL

    words = hf.AutoProcessor.from_pretrained(MODEL)
    square = {"height": shape.side, "width": shape.side}
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size=square, crop_size=square),
        words.tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=words.image_token,
        chat_template=words.chat_template,
    )
    ends = {"eos_token_id": words.tokenizer.eos_token_id, "pad_token_id": words.tokenizer.pad_token_id}
    sizes = _sizes(shape.width, shape.layers, shape.inner)
    text = hf.LlamaConfig(**sizes, vocab_size=shape.vocabulary, bos_token_id=None, **ends)
    eyes = hf.CLIPVisionConfig(**_sizes(shape.sees, shape.sees_layers), image_size=shape.side, patch_size=shape.patch)
    token = words.tokenizer.convert_tokens_to_ids(words.image_token)
    tokens = (shape.side // shape.patch) ** 2
    torch.manual_seed(seed)
    config = hf.LlavaConfig(vision_config=eyes, text_config=text, image_token_index=token, image_seq_length=tokens)
    model = hf.LlavaForConditionalGeneration(config).eval()
    # the best of V normal logits leads by a mean of their deviation / sqrt(2 ln V), exponentially distributed
    nats = -math.log(BETA) * math.sqrt(2 * math.log(shape.vocabulary)) / -math.log1p(-UNDECIDED)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=nats / math.sqrt(shape.width))
    unended = [token, text.eos_token_id]  # answers are as long as they may be
    model.generation_config.update(**ends, suppress_tokens=unended)
    return model.to(dtype=dtype), processor


def random_matcher(shape: Shape, seed: int = 0) -> Any:
    """Return a BLIP-ITM of this shape with random weights and the embedded matcher's words."""
    import transformers as hf

    from lvlm_guard.embedded import MATCHER
    from lvlm_guard.matching import BlipITM

    torch.manual_seed(seed)
    sizes = _sizes(shape.reads, shape.reads_layers)
    text = hf.BlipTextConfig(**sizes, encoder_hidden_size=shape.sees, is_decoder=True)
    eyes = hf.BlipVisionConfig(**_sizes(shape.sees, shape.sees_layers), image_size=shape.matched, patch_size=16)
    config = hf.BlipConfig(text_config=text.to_dict(), vision_config=eyes.to_dict(), image_text_hidden_size=256)
    model = hf.BlipForImageTextRetrieval(config)
    return BlipITM(model, hf.AutoTokenizer.from_pretrained(MATCHER), mean=(0.5,) * 3, std=(0.5,) * 3, name="random")


def _sizes(width: int, layers: int, inner: int = 0) -> dict[str, Any]:
    heads = {"num_hidden_layers": layers, "num_attention_heads": width // 64}
    return {"hidden_size": width, "intermediate_size": inner or 4 * width, **heads}
