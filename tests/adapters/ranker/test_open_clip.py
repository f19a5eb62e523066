"""Converted ConvNeXt CLIPs against timm's ConvNeXt and against the text tower as open_clip writes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lvlm_guard.adapters.backbone import Inputs, load_backbone
from lvlm_guard.adapters.ranker.model import ClipRanker
from lvlm_guard.adapters.ranker.open_clip import CONFIG, WEIGHTS, convert, converted
from lvlm_guard.errors import UnsupportedModelError, WeightsError

timm = pytest.importorskip("timm")
WIDTH, HEADS, LAYERS, CONTEXT, VOCABULARY, JOINT, SIDE = 24, 2, 2, 16, 13, 20, 64


class Block(nn.Module):
    """A layer of open_clip's text tower."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, 4 * WIDTH))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        causal = torch.full((x.shape[1],) * 2, float("-inf")).triu(1)
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, attn_mask=causal, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class OpenClip(nn.Module):
    """open_clip's CLIP with a timm tower, under the names of its state dict."""

    def __init__(self, projection: str) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.trunk = timm.create_model("convnext_tiny", num_classes=0, dims=(4, 8, 8, 16), depths=(1, 2, 1, 1))
        if projection == "linear":
            head = {"proj": nn.Linear(16, JOINT, bias=False)}
        else:
            head = {"mlp": timm.layers.Mlp(16, 2 * JOINT, JOINT, bias=(True, False))}
        self.visual.head = nn.Sequential()
        for name, part in head.items():
            self.visual.head.add_module(name, part)
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, WIDTH))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, JOINT))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))

    def text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_final(x)


def open_clip(projection: str = "linear") -> OpenClip:
    torch.manual_seed(0)
    model = OpenClip(projection).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn_like(weight))  # as made, norms and layer scales say little
    return model


IDS = torch.tensor([[11, 4, 5, 6, 12, 0, 0], [11, 4, 5, 6, 7, 8, 12]])


@torch.no_grad()
@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_tokens_are_those_of_open_clip(projection: str) -> None:
    theirs, pixels = open_clip(projection), torch.randn(3, 3, SIDE, SIDE)
    ours = ClipRanker(converted(theirs.state_dict(), HEADS, SIDE))
    seen = theirs.visual.trunk.forward_features(pixels)
    torch.testing.assert_close(ours.image_tokens(pixels), seen.flatten(2).transpose(1, 2))
    states, mask = ours.text_tokens(IDS)
    torch.testing.assert_close(states, theirs.text(IDS), rtol=1e-4, atol=1e-5)
    assert mask.sum(1).tolist() == [5, 7]


@torch.no_grad()
def test_cosines_are_those_of_open_clip_where_its_projection_is_linear() -> None:
    theirs, pixels = open_clip(), torch.randn(3, 3, SIDE, SIDE)
    images = theirs.visual.head(theirs.visual.trunk(pixels))
    texts = theirs.text(IDS)[torch.arange(2), IDS.argmax(-1)] @ theirs.text_projection
    expected = nn.functional.normalize(images, dim=-1) @ nn.functional.normalize(texts, dim=-1).T
    ours = ClipRanker(converted(theirs.state_dict(), HEADS, SIDE))
    torch.testing.assert_close(ours.similarity(pixels, IDS), expected, rtol=1e-4, atol=1e-5)
    assert float(ours.clip.logit_scale) == float(theirs.logit_scale)


def test_a_projection_that_is_left_out_gives_no_cosine_also_after_loading(tmp_path: Path) -> None:
    model = converted(open_clip("mlp").state_dict(), HEADS, SIDE)
    model.save_pretrained(tmp_path)
    for clip in (model, load_backbone(tmp_path)):
        with pytest.raises(UnsupportedModelError, match="tokens but no cosine"):
            ClipRanker(clip).similarity(torch.randn(1, 3, SIDE, SIDE), IDS)


def test_a_folder_is_converted_with_its_tokenizer_and_scale(saved_clip: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs, place = open_clip(), tmp_path / "theirs"
    AutoTokenizer.from_pretrained(saved_clip("vit")).save_pretrained(place)
    save_file({name: weight.contiguous() for name, weight in theirs.state_dict().items()}, place / WEIGHTS)
    told: dict[str, Any] = {"vision_cfg": {"image_size": SIDE}, "text_cfg": {"heads": HEADS}}
    scale = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (place / CONFIG).write_text(json.dumps({"model_cfg": told, "preprocess_cfg": scale}))
    folder = convert(place, tmp_path / "ours")
    clip = load_backbone(folder)
    inputs = Inputs.of(clip, folder)
    assert (inputs.side, inputs.mean, inputs.std) == (SIDE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        seen = theirs.visual.trunk.forward_features(pixels).flatten(2).transpose(1, 2)
        torch.testing.assert_close(ClipRanker(clip).image_tokens(pixels), seen)


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    weights = open_clip().state_dict()
    with pytest.raises(UnsupportedModelError, match="no weights of a ConvNeXt CLIP"):
        converted({"visual.conv1.weight": torch.zeros(1)}, HEADS, SIDE)
    with pytest.raises(UnsupportedModelError, match="another kind of CLIP: text_model"):
        converted({k: w for k, w in weights.items() if k != "transformer.resblocks.1.ln_2.bias"}, HEADS, SIDE)
    with pytest.raises(UnsupportedModelError, match="another kind of CLIP: vision_model"):
        converted(weights | {"visual.trunk.stages.1.blocks.0.mlp.grn.weight": torch.zeros(8)}, HEADS, SIDE)
    with pytest.raises(WeightsError, match="not in open_clip's layout"):
        convert(tmp_path, tmp_path / "out")
