"""Tiny random open-vocabulary detectors of transformers' own classes, with tokenizers of letters."""

from __future__ import annotations

import string
from typing import Any

import torch
import transformers as T
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

KINDS = ("owlv2", "grounding-dino")


def _bert_tokenizer() -> Any:
    """Letters, at the ids of BERT's marks by which Grounding DINO parts phrases."""
    vocab = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    for index, letter in enumerate(string.ascii_lowercase):
        vocab |= {letter: 200 + index, f"##{letter}": 300 + index}
    raw = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    return T.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def _clip_tokenizer() -> Any:
    marks = ["!", "<s>", "</s>", "<unk>"]  # a query that begins with 0 counts as padding
    vocab = {token: i for i, token in enumerate([*marks, *string.ascii_lowercase])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return T.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="!", model_max_length=48
    )


def make(kind: str) -> tuple[Any, Any]:
    """Return a model and its processor."""
    torch.manual_seed(0)
    if kind == "owlv2":
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = small | {"vocab_size": 40, "max_position_embeddings": 48, "bos_token_id": 1, "eos_token_id": 2}
        eyes = small | {"image_size": 64, "patch_size": 16}
        config: Any = T.Owlv2Config(text_config=text | {"pad_token_id": 0}, vision_config=eyes, projection_dim=16)
        images = T.Owlv2ImageProcessor(size={"height": 64, "width": 64})
        model: Any = T.Owlv2ForObjectDetection(config)
        processor: Any = T.Owlv2Processor(images, _clip_tokenizer())
    else:
        swin = T.SwinConfig(
            image_size=128, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
            out_features=["stage2", "stage3", "stage4"],
        )  # fmt: skip
        bert = T.BertConfig(
            vocab_size=1100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=1024,
        )  # fmt: skip
        config = T.GroundingDinoConfig(
            backbone_config=swin, text_config=bert, d_model=32, encoder_layers=1, decoder_layers=2, num_queries=12,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
            max_text_len=1024, disable_custom_kernels=True,
        )  # fmt: skip
        model = T.GroundingDinoForObjectDetection(config)
        images = T.GroundingDinoImageProcessor(size={"height": 128, "width": 128})
        processor = T.GroundingDinoProcessor(images, _bert_tokenizer())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5 if kind == "owlv2" else 4)
    return model.eval(), processor
