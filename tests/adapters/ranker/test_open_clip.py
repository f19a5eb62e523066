"""CLIPs of open_clip below a ranker, against open_clip itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lvlm_guard.adapters.backbone import Inputs, load_backbone
from lvlm_guard.adapters.open_clip import CONFIG
from lvlm_guard.adapters.ranker.model import ClipRanker, adapted, card_of
from lvlm_guard.adapters.ranker.ranker import Ranker
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.cli import main
from lvlm_guard.errors import MissingExtraError, WeightsError

CONTEXT, SIDE = 16, 64
VISION = {
    "convnext": {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "mlp", "image_size": SIDE},
    "vit": {"image_size": SIDE, "layers": 2, "width": 40, "head_width": 10, "patch_size": 16},
}
TEXT = {"context_length": CONTEXT, "vocab_size": 13, "width": 24, "heads": 2, "layers": 2}
IDS = torch.tensor([[1, 4, 5, 6, 7, 8, 12, 3, 0, 0], [1, 4, 9, 3, 0, 0, 0, 0, 0, 0]])
MASK = (torch.arange(10) < torch.tensor([[8], [4]])).long()


@pytest.fixture(params=list(VISION))
def place(request: pytest.FixtureRequest, tmp_path: Path, saved_clip: Callable[..., Path]) -> Path:
    """A folder as open_clip's hub repositories hold one."""
    torch.manual_seed(0)
    told = {
        "model_cfg": {"embed_dim": 20, "vision_cfg": VISION[request.param], "text_cfg": TEXT | {"eos_id": 3}},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    folder = tmp_path / request.param
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(told))
    made = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(
        {name: value.contiguous() for name, value in made.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    for file in saved_clip("vit").glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def theirs(place: Path) -> Any:
    return open_clip.create_model(f"local-dir:{place}").eval()


def test_tokens_and_cosines_are_those_of_open_clip(place: Path) -> None:
    model, pixels = theirs(place), torch.randn(3, 3, SIDE, SIDE)
    filled = torch.nn.functional.pad(IDS, (0, CONTEXT - IDS.shape[1]))
    ours = ClipRanker(load_backbone(place), RankerSettings(width=32, heads=4, prompts=2, relations=2))
    with torch.no_grad():
        tokens, kept = ours.text_tokens(IDS, MASK)
        seen = ours.image_tokens(pixels)
        features = model.encode_image(pixels, normalize=True), model.encode_text(filled, normalize=True)
        torch.testing.assert_close(ours.similarity(pixels, IDS, MASK), features[0] @ features[1].T)
        said = model.forward_intermediates(text=filled, text_indices=1, normalize_intermediates=True)
        torch.testing.assert_close(tokens, said["text_intermediates"][-1][:, :10])
        shown = model.forward_intermediates(image=pixels, image_indices=1, normalize_intermediates=True)
    assert torch.equal(kept, MASK.bool())
    rows, columns = ours.trunk.grid(SIDE, SIDE)
    assert seen.shape == (3, rows * columns, ours.trunk.image_width)
    torch.testing.assert_close(seen, shown["image_intermediates"][-1].flatten(2).transpose(1, 2))


@pytest.mark.parametrize("trunk", ["frozen", "tuned"])
def test_a_ranker_on_it_is_trained_saved_and_loaded_by_the_folder_that_its_card_names(
    place: Path, trunk: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    settings = RankerSettings(width=32, heads=4, prompts=2, relations=2, dropout=0.0)
    clip = load_backbone(place)
    model = adapted(ClipRanker(clip, settings), trunk).train()
    learning = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        learning.zero_grad()
        pixels = torch.randn(4, 3, SIDE, SIDE)
        model(pixel_values=pixels, input_ids=IDS[:1], attention_mask=MASK[:1], labels=torch.arange(4.0)).loss.backward()
        learning.step()
    towers = [name for name, p in model.named_parameters() if p.requires_grad and ".clip.model." in name]
    assert bool(towers) is (trunk == "tuned")
    ranker = Ranker(model, card_of(model), Inputs.of(clip))
    ranker.save_pretrained(tmp_path / "ranker")
    images = [Image.effect_noise((90, 50), 60 + k).convert("RGB") for k in range(3)]
    again = Ranker.from_pretrained(tmp_path / "ranker")
    assert again.card.backbone == str(place)
    for mine, found in zip(ranker.rank(images, "rank dog"), again.rank(images, "rank dog"), strict=True):
        torch.testing.assert_close(found, mine)


def test_without_the_extra_and_with_half_a_folder_it_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "open_clip", None)
        with pytest.raises(MissingExtraError, match=r"lvlm-guard\[open-clip\]"):
            load_backbone(place)
    (place / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="open_clip model"):
        load_backbone(place)


def test_a_comparison_that_cannot_be_made_is_refused_before_anything_is_trained(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["train", "ranker", "--clip", str(place), "--compare", "--steps", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(call)
    assert ended.value.code == 1
    assert "CLIP" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/**/adapter_model.safetensors"))
