"""A ranker as a PEFT adapter: saved, loaded in a new process, switched off, refused on another CLIP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from lvlm_guard.adapters.ranker.card import FILE, RankerCard
from lvlm_guard.adapters.ranker.model import ClipRanker, adapted, card_of, load, save
from lvlm_guard.errors import KnobError, TextError, UnsupportedModelError, WeightsError

Make = Callable[..., ClipRanker]
Group = Callable[..., dict[str, Tensor]]

ANSWER = """
import sys, torch
from lvlm_guard.adapters.ranker.model import load
folder, inputs, out = sys.argv[1:]
model, _ = load(folder)
with torch.inference_mode():
    said = model(**torch.load(inputs))
torch.save((said.scores, said.logits), out)
"""


@pytest.fixture
def trained(saved_clip: Callable[..., Path], small: Any, group: Group) -> Callable[..., Any]:
    """A ranker trained for three steps on a CLIP that lies on disk."""

    def make(kind: str = "vit", trunk: str = "frozen") -> Any:
        torch.manual_seed(0)
        model = adapted(ClipRanker.from_pretrained(saved_clip(kind), settings=small), trunk).train()
        learning = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(3):
            learning.zero_grad()
            model(**group()).loss.backward()
            learning.step()
        return model.eval()

    return make


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["frozen", "tuned"])
def test_a_new_process_loads_it_and_answers_bit_for_bit(
    kind: str, trunk: str, trained: Callable[..., Any], group: Group, tmp_path: Path
) -> None:
    model, inputs = trained(kind, trunk), group()
    save(model, card_of(model), tmp_path / "ranker")
    assert {path.name for path in (tmp_path / "ranker").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", FILE,
    }  # fmt: skip
    torch.save(inputs, tmp_path / "inputs.pt")
    out = tmp_path / "out.pt"
    command = [sys.executable, "-c", ANSWER, *map(str, (tmp_path / "ranker", tmp_path / "inputs.pt", out))]
    subprocess.run(command, check=True, timeout=120)
    scores, logits = torch.load(out)
    with torch.inference_mode():
        said = model(**inputs)
    assert torch.equal(scores, said.scores)
    assert torch.equal(logits, said.logits)


@pytest.mark.parametrize("trunk", ["frozen", "tuned"])
def test_switched_off_the_clip_is_the_plain_one_exactly(
    kind: str, trunk: str, trained: Callable[..., Any], make_clip: Callable[..., Any], group: Group
) -> None:
    inputs = {name: tensor for name, tensor in group().items() if name != "labels"}
    model, plain = trained(kind, trunk), make_clip(kind)
    expected = plain(**inputs)
    with model.disable_adapter():
        said = model.clip(**inputs)
        tokens = model.image_tokens(inputs["pixel_values"])
    assert torch.equal(said.logits_per_image, expected.logits_per_image)
    assert torch.equal(said.text_embeds, expected.text_embeds)
    assert torch.equal(tokens, ClipRanker(plain).image_tokens(inputs["pixel_values"]))
    assert torch.equal(model.clip(**inputs).logits_per_image, expected.logits_per_image) == (trunk == "frozen")


def test_training_goes_on_after_loading(trained: Callable[..., Any], group: Group, tmp_path: Path) -> None:
    save(model := trained("vit", "frozen"), card_of(model), tmp_path / "ranker")
    again, _ = load(tmp_path / "ranker", trainable=True)
    assert again.training
    assert not again.clip.training
    asked = {name for name, p in again.named_parameters() if p.requires_grad}
    assert asked == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in load(tmp_path / "ranker")[0].parameters())


def test_it_works_beside_a_lora_of_the_users_own(trained: Callable[..., Any], group: Group, tmp_path: Path) -> None:
    model = trained("vit", "tuned")
    before = model(**group()).scores
    model.add_adapter("theirs", LoraConfig(target_modules=r"clip\.vision_model\..*\.k_proj", init_lora_weights=False))
    model.set_adapter("theirs")
    assert not torch.equal(model.clip(pixel_values=group()["pixel_values"], input_ids=group()["input_ids"])[0], before)
    model.set_adapter("default")
    assert torch.equal(model(**group()).scores, before)


def test_a_clip_of_other_sizes_is_refused_naming_both(trained: Callable[..., Any], tmp_path: Path) -> None:
    model = trained()
    save(model, card_of(model), tmp_path / "ranker")
    config = model.clip.config.to_dict()
    config["vision_config"] |= {"hidden_size": 48}
    from transformers import CLIPConfig, CLIPModel

    other = CLIPModel(CLIPConfig(**config))
    other.name_or_path = "somewhere/wider"
    with pytest.raises(UnsupportedModelError) as refused:
        load(tmp_path / "ranker", other)
    for part in ("clip-vit'", "width 40", "width 24", "'somewhere/wider' has 48 and 24"):
        assert part in str(refused.value)


def test_a_ranker_and_a_model_of_another_kind_are_no_backbone(
    trained: Callable[..., Any], make_ranker: Make, tmp_path: Path
) -> None:
    save(model := trained(), card_of(model), tmp_path / "ranker")
    with pytest.raises(UnsupportedModelError, match="ranker already"):
        load(tmp_path / "ranker", make_ranker())
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsupportedModelError, match="type 'bert'"):
        load(tmp_path / "ranker", tmp_path / "bert")


def test_a_clip_that_lacks_weights_is_refused(saved_clip: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    place = saved_clip("vit")
    weights = load_file(place / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"lacks the weights visual_projection\.weight"):
        ClipRanker.from_pretrained(place)


def test_what_can_not_be_loaded_is_said(trained: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "ranker"
    with pytest.raises(WeightsError, match="is no folder of a ranker"):
        load(folder)
    save(model := trained(), card_of(model), folder)
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match="incomplete or damaged"):
        load(folder)
    with pytest.raises(WeightsError, match="nowhere"):
        load(folder, "nowhere/at-all")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda told: told | {"format": 2}, "format 2"),
        (lambda told: told | {"colour": "red"}, "colour"),
        (lambda told: {k: v for k, v in told.items() if k != "backbone"}, "damaged"),
        (lambda told: told | {"settings": {"width": 30}}, "damaged"),
        (lambda told: told | {"calibration": [1]}, "damaged"),
        (lambda told: told | {"y_std": 0}, "damaged"),
        (lambda told: [], "damaged"),
    ],
)
def test_a_card_that_is_damaged_or_newer_is_refused(change: Any, why: str, tmp_path: Path) -> None:
    path = RankerCard("clip", 40, 24).write(tmp_path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(WeightsError, match=why):
        RankerCard.read(tmp_path)


def test_a_card_reads_back_as_it_was_written(small: Any, tmp_path: Path) -> None:
    card = RankerCard(
        "openai/clip", 40, 24, small, "Rank by age.", 30.0, 12.5, {"Rank by quality.": (50.0, 20.0)}, (0.25, 1.75), 0.5
    )
    card.write(tmp_path)
    assert RankerCard.read(tmp_path) == card
    told = json.loads((tmp_path / FILE).read_text())
    for name in ("width", "heads", "relations"):
        assert told["settings"][name] == getattr(small, name)
    assert (told["y_mean"], told["y_std"], told["calibration"]) == (30.0, 12.5, [0.25, 1.75])


def test_an_instruction_is_made_from_a_template_and_a_name() -> None:
    """The release replaces substrings, so that "car" is found inside "carrot"."""
    card = RankerCard("clip", 40, 24)
    assert card.asked("car") == "Rank the numbers of car."
    assert card.asked("carrot") == "Rank the numbers of carrot."
    assert card.asked("a {brace}") == "Rank the numbers of a {brace}."
    assert replace(card, instruction="Rank by age.").asked() == "Rank by age."
    with pytest.raises(TextError, match="give its name"):
        card.asked(" ")


@pytest.mark.parametrize("instruction", ["Rank {number} of {object}.", "Rank {}", "Rank {object", " "])
def test_an_instruction_with_another_placeholder_is_refused(instruction: str) -> None:
    with pytest.raises(KnobError, match="instruction"):
        RankerCard("clip", 40, 24, instruction=instruction)


@pytest.mark.parametrize(("trunk", "rank"), [("thawed", 8), ("tuned", 0)])
def test_another_trunk_or_rank_is_refused(trunk: Any, rank: int, make_ranker: Make) -> None:
    with pytest.raises(KnobError, match="'frozen' or 'tuned'"):
        adapted(make_ranker(), trunk, rank)
