"""Tokenizer, processor and untrained model of the tiny CLIP: small, but the real transformers classes."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.embedded.text import CAPTION_PROMPT, caption, question
from lvlm_guard.embedded.tinted import COLOURS, METAS, NUMBERS
from lvlm_guard.embedded.world import SIZE
from lvlm_guard.matching.vocabulary import plural

PATCH = 12  # 64 image tokens; with 16 two of the smallest drawings often share one
CONTEXT = 77  # positions, as CLIP has
WIDTH = JOINT = 128  # of both towers, and of the space they share

# The end must not have the id 2: CLIPTextModel takes that for the released configs' mistake, and pools at the
# largest id instead of at the end (transformers, modeling_clip.py).
SPECIAL = ("<pad>", "<s>", "<unk>", "</s>")

_INSTRUCTIONS = "rank the numbers of . rank the size of the . rank the brightness of the image . how many are there ?"
_PHRASES = "a an the and or with without not this that of in on is are there photo picture image scene only other kind"


def vocabulary() -> dict[str, int]:
    """Return word -> id: the special tokens, then every word of the world's texts and a few around them."""
    words = [*_PHRASES.split(), ",", ".", "?", ":", *_INSTRUCTIONS.split(), *NUMBERS, *COLOURS, *METAS]
    for text in (CAPTION_PROMPT, question("dog"), caption([]), caption(["dog"])):
        words += text.split()
    words += ["colored", "small", "large", "dark", "bright", "left", "right", "yes", *CLASSES, *map(plural, CLASSES)]
    return {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer: lower case, `<s> ... </s>`, at most 77 tokens."""
    vocab = vocabulary()
    words = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(mark, vocab[mark]) for mark in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=CONTEXT,
    )


def processor() -> CLIPProcessor:
    """Return the processor; pictures of any size are squeezed to 96 x 96, since a crop would change counts."""
    images = CLIPImageProcessor(
        do_resize=True,
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return CLIPProcessor(images, tokenizer())


def build(seed: int = 0) -> CLIPModel:
    """Return the untrained model: 4 layers of width 128 for pictures, as many for texts."""
    torch.manual_seed(seed)
    vocab = vocabulary()
    config = CLIPConfig(
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "projection_dim": JOINT,
            "bos_token_id": vocab["<s>"],
            "eos_token_id": vocab["</s>"],
            "pad_token_id": vocab["<pad>"],
        },
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": PATCH,
            "projection_dim": JOINT,
        },
        projection_dim=JOINT,
    )
    return CLIPModel(config)
