"""Tiny random detectors of transformers' own classes."""

from __future__ import annotations

from typing import Any

import torch
import transformers

LABELS = {0: "person", 1: "dog", 2: "sofa", 3: "tvmonitor", 4: "N/A", 5: "zebra"}
BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
RT = {
    "encoder_hidden_dim": 16, "encoder_in_channels": [16, 16, 16], "encoder_ffn_dim": 16, "encoder_attention_heads": 2,
    "d_model": 16, "num_queries": 12, "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 16,
    "decoder_attention_heads": 2, "decoder_layers": 2, "feat_strides": [8, 16, 32], "num_denoising": 0,
    "disable_custom_kernels": True,
}  # fmt: skip
KINDS = ("rt_detr_v2", "d_fine", "detr", "yolos")


def make(kind: str) -> tuple[Any, Any]:
    """Return a model and its image processor, of pictures brought to 64 x 64."""
    torch.manual_seed(0)
    square: dict[str, Any] = {"size": {"height": 64, "width": 64}}
    labels = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
    if kind == "yolos":
        config = transformers.YolosConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
            patch_size=16, num_detection_tokens=10, **labels,
        )  # fmt: skip
        return transformers.YolosForObjectDetection(config).eval(), transformers.YolosImageProcessor(**square)
    if kind == "detr":
        resnet = transformers.ResNetConfig(**BACKBONE, out_features=["stage4"])
        config = transformers.DetrConfig(
            use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, backbone_config=resnet, d_model=16,
            num_queries=12, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
            encoder_attention_heads=2, decoder_attention_heads=2, **labels,
        )  # fmt: skip
        return transformers.DetrForObjectDetection(config).eval(), transformers.DetrImageProcessor(**square)
    if kind == "rt_detr_v2":
        resnet = transformers.RTDetrResNetConfig(**BACKBONE, out_features=["stage2", "stage3", "stage4"])
        config = transformers.RTDetrV2Config(backbone_config=resnet, **RT, **labels)
        model: Any = transformers.RTDetrV2ForObjectDetection(config)
    else:
        net = transformers.HGNetV2Config(
            num_channels=3, embedding_size=8, depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 16, 16],
            stem_channels=[3, 8, 8], stage_in_channels=[8, 16, 16, 16], stage_mid_channels=[8, 8, 8, 8],
            stage_out_channels=[16, 16, 16, 16], stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[1, 1, 1, 1],
            out_features=["stage2", "stage3", "stage4"], out_indices=None,
        )  # fmt: skip
        config = transformers.DFineConfig(backbone_config=net, **RT, **labels)
        model = transformers.DFineForObjectDetection(config)
    return model.eval(), transformers.RTDetrImageProcessor(**square)
