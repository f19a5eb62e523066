"""Convert a ConvNeXt CLIP of open_clip: `python -m lvlm_guard.adapters.ranker.open_clip SOURCE FOLDER`.

SOURCE is a folder or hub id in open_clip's layout, such as laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup
(the release's); FOLDER gets a `VisionTextDualEncoderModel` with tokenizer and image processor. Tokens of pictures and
texts are open_clip's own, to rounding. So is the cosine, except for the "_d" models: their image projection is an MLP,
which that class has no place for; it is left out, and `similarity` refuses.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.errors import UnsupportedModelError, WeightsError
from lvlm_guard.weights import how_to_fetch, read

CONFIG, WEIGHTS, PICKLED = "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"

_VISION = (
    (r"stem\.0\.", "embeddings.patch_embeddings."),
    (r"stem\.1\.", "embeddings.layernorm."),
    (r"stages\.(\d+)\.downsample\.(\d)\.", r"encoder.stages.\1.downsampling_layer.\2."),
    (r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.", r"encoder.stages.\1.layers.\2.dwconv."),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm\.", r"encoder.stages.\1.layers.\2.layernorm."),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.", r"encoder.stages.\1.layers.\2.pwconv\3."),
    (r"stages\.(\d+)\.blocks\.(\d+)\.gamma$", r"encoder.stages.\1.layers.\2.layer_scale_parameter"),
    (r"head\.norm\.", "layernorm."),
)
_TEXT = (
    ("token_embedding.", "embeddings.token_embedding."),
    ("ln_final.", "final_layer_norm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)


def converted(weights: Mapping[str, Tensor], text_heads: int, image_size: int) -> Any:
    """Return a `VisionTextDualEncoderModel` with the weights of an open_clip ConvNeXt CLIP, in float32.

    Args:
        weights: open_clip's state dict.
        text_heads: attention heads of the text tower.
        image_size: side of the pictures it was trained on, in pixels.

    Raises:
        UnsupportedModelError: the weights are of another kind of CLIP.
    """
    from transformers import CLIPTextConfig, ConvNextConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    if "visual.trunk.stem.0.weight" not in weights or "ln_final.weight" not in weights:
        raise UnsupportedModelError(
            "These are no weights of a ConvNeXt CLIP of open_clip. A ViT of open_clip is on the hub as a CLIPModel too."
        )
    stages = _count(weights, r"visual\.trunk\.stages\.(\d+)\.")
    depths = [_count(weights, rf"visual\.trunk\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)]
    sizes = [len(weights[f"visual.trunk.stages.{stage}.blocks.0.norm.weight"]) for stage in range(stages)]
    if sizes[-1] > 2048:
        raise UnsupportedModelError(
            "convnext_xxlarge normalises with another epsilon than transformers' ConvNeXt can: take convnext_large."
        )
    context, width = weights["positional_embedding"].shape
    vocabulary = len(weights["token_embedding.weight"])
    text = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, num_attention_heads=text_heads, max_position_embeddings=context,
        num_hidden_layers=_count(weights, r"transformer\.resblocks\.(\d+)\."), hidden_act="gelu",
        intermediate_size=len(weights["transformer.resblocks.0.mlp.c_fc.weight"]),
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    )  # fmt: skip
    vision = ConvNextConfig(
        num_stages=stages, hidden_sizes=sizes, depths=depths, image_size=image_size, layer_norm_eps=1e-6,
        patch_size=weights["visual.trunk.stem.0.weight"].shape[-1],
    )  # fmt: skip
    config = VisionTextDualEncoderConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict() | {"hidden_size": sizes[-1]},  # the class asks for it
        projection_dim=weights["text_projection"].shape[1],
    )
    model = VisionTextDualEncoderModel(config).eval()
    named = _renamed(weights)
    if "visual_projection.weight" not in named:
        model.config.lvlm_guard = {"pooled": False}
        named["visual_projection.weight"] = torch.zeros_like(model.visual_projection.weight)
    loaded = model.load_state_dict(named, strict=False)
    missing = [name for name in loaded.missing_keys if not name.endswith("position_ids")]
    if missing or loaded.unexpected_keys:
        raise UnsupportedModelError(
            f"The weights are of another kind of CLIP: {', '.join([*missing, *loaded.unexpected_keys][:3])}, ..."
        )
    return model


def convert(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Write the converted model, tokenizer and image processor of an open_clip folder or hub id; return the folder.

    Raises:
        WeightsError: something can't be had.
        UnsupportedModelError: see `converted`.
    """
    from transformers import AutoTokenizer, CLIPImageProcessor

    place, target = _fetched(str(source)), Path(folder)
    told = json.loads((place / CONFIG).read_text("utf-8"))
    model_told, pixels_told = told["model_cfg"], told.get("preprocess_cfg", {})
    if (place / WEIGHTS).is_file():
        from safetensors.torch import load_file

        weights = load_file(place / WEIGHTS)
    else:
        weights = torch.load(place / PICKLED, map_location="cpu", weights_only=True)
    side = model_told["vision_cfg"]["image_size"]
    model = converted(weights, model_told["text_cfg"]["heads"], side)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(place).save_pretrained(target)
    square = {"height": side, "width": side}
    scale = {f"image_{name}": pixels_told[name] for name in ("mean", "std") if name in pixels_told}
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square, **scale).save_pretrained(target)
    return target


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in weights if (found := re.match(pattern, name)))


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {"text_projection.weight": weights["text_projection"].T}
    named["text_model.embeddings.position_embedding.weight"] = weights["positional_embedding"]
    for name, weight in weights.items():
        if name.startswith("visual.trunk."):
            ours = name.removeprefix("visual.trunk.")
            for pattern, put in _VISION:
                ours = re.sub("^" + pattern, put, ours)
            named[f"vision_model.{ours}"] = weight
        elif name == "visual.head.proj.weight":
            named["visual_projection.weight"] = weight
        elif name == "logit_scale":
            named[name] = weight.reshape(())
        elif ".attn.in_proj_" in name:
            layer, kind = re.match(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name).groups()  # type: ignore[union-attr]
            for part, its in zip("qkv", weight.chunk(3), strict=True):
                named[f"text_model.encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = its
        elif name.startswith(("token_embedding.", "ln_final.", "transformer.")):
            ours = name
            for theirs, put in _TEXT:
                ours = ours.replace(theirs, put)
            named[f"text_model.{ours}"] = weight
    return {name: weight.float() for name, weight in named.items()}


def _fetched(source: str) -> Path:
    from huggingface_hub import snapshot_download

    def find() -> Path:
        place = Path(source) if Path(source).is_dir() else Path(snapshot_download(source))
        if not (place / CONFIG).is_file() or not any((place / name).is_file() for name in (WEIGHTS, PICKLED)):
            raise WeightsError(
                f"{source!r} is not in open_clip's layout: it needs {CONFIG} and {WEIGHTS} or {PICKLED}."
            )
        return place

    return read(
        f"The open_clip model {source!r}",
        source,
        find,
        damaged="The folder is incomplete or damaged.",
        absent=how_to_fetch(source, "python -m lvlm_guard.adapters.ranker.open_clip DIR FOLDER"),
    )


def main() -> None:
    """Convert what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or hub id in open_clip's layout")
    parser.add_argument("folder", help="where the converted model is written")
    told = parser.parse_args()
    print(convert(told.source, told.folder))


if __name__ == "__main__":
    main()
