"""What learns, what stays, what is kept, and what is read of a data set."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from in_memory import InMemory
from PIL import Image
from trainings import DUAL, RANKER, recipe

from lvlm_guard.adapters.data import CaptionData, CaptionRow, RankData
from lvlm_guard.adapters.data.pictures import Bad, Features
from lvlm_guard.adapters.errors import DataError, TrainingError
from lvlm_guard.adapters.losses import LossStack
from lvlm_guard.adapters.presets import PRESETS
from lvlm_guard.adapters.training import dual_prompt, ranker, retrieval, trainer
from lvlm_guard.adapters.training.ranker import RankingTask
from lvlm_guard.adapters.training.recipe import CANDIDATES, Recipe
from lvlm_guard.adapters.training.retrieval import RetrievalTask
from lvlm_guard.adapters.training.trainer import learning
from lvlm_guard.errors import KnobError


def nothing(_: int) -> None:
    pass


@pytest.mark.parametrize(
    "plan",
    [
        DUAL,
        replace(DUAL, strength=0.5),
        replace(DUAL, losses=LossStack(consistency=8.0)),
        replace(DUAL, losses=LossStack(claims=1.0, negclip=True)),
        PRESETS["coop"].plan,
        PRESETS["promptsrc"].plan,
        PRESETS["coprompt"].plan,
    ],
    ids=["plain", "weighed", "holding on", "claims and all swaps", "coop", "promptsrc", "coprompt"],
)
def test_everything_that_learns_has_a_gradient_and_nothing_else_changes(
    caption_pictures: dual_prompt.Pictures, plan: dual_prompt.Plan
) -> None:
    torch.manual_seed(0)
    retriever = dual_prompt.build(plan, caption_pictures)
    task = RetrievalTask(retriever, caption_pictures, plan, recipe())
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    names = learning(task.model)
    optimizer = torch.optim.AdamW(list(names.values()), lr=1e-2)
    for number in range(2):
        loss, _ = task.loss(task.model, task.batches.batch(number))
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in names.values())
        optimizer.step()
    after = task.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == set(names)


def test_a_rankers_clip_keeps_every_bit_and_its_tokens_are_computed_once(ranked_pictures: ranker.Pictures) -> None:
    torch.manual_seed(0)
    made = ranker.build(RANKER, ranked_pictures.train)
    task = RankingTask(made, ranked_pictures, recipe())
    group = task.batches.batch(0)
    assert group.seen.shape[1:] == (64, 128)
    picture = ranked_pictures.train.images[0]
    held = ranked_pictures.seen([picture])
    fresh = made.image_tokens([ranked_pictures.train.load(picture)])
    assert torch.allclose(held, fresh, atol=1e-5)
    before = {name: value.clone() for name, value in made.model.clip.state_dict().items()}
    optimizer = torch.optim.AdamW(list(learning(task.model).values()), lr=1e-2)
    for number in range(2):
        task.loss(task.model, task.batches.batch(number))[0].backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in made.model.clip.state_dict().items())


@pytest.mark.slow
def test_a_training_on_wrong_captions_ends_in_the_untuned_clip(
    caption_pictures: dual_prompt.Pictures, tmp_path: Path
) -> None:
    rows = caption_pictures.train.rows
    turned = [
        replace(row, caption=other.caption, negatives=(row.caption,), kinds=())
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    wrong = replace(caption_pictures, train=caption_pictures.train.with_rows(turned))
    made = dual_prompt.fit(DUAL, wrong, recipe(rate=0.05, steps=24, measure_every=8), tmp_path, nothing)
    assert made.config is None
    loaded = dual_prompt.DualPromptRetriever.from_pretrained(tmp_path)
    plain = dual_prompt.untuned()
    texts = ["a red dog", "two cats"]
    assert torch.allclose(loaded.text_features(texts), plain.text_features(texts), atol=1e-6)
    assert loaded.card.calibration is not None


def test_a_folder_names_its_clip_as_anyone_can_load_it_and_not_by_a_path_of_this_machine(
    caption_pictures: dual_prompt.Pictures, ranked_pictures: ranker.Pictures, tmp_path: Path
) -> None:
    dual_prompt.build(DUAL, caption_pictures).save_pretrained(tmp_path / "prompts")
    ranker.build(RANKER, ranked_pictures.train).save_pretrained(tmp_path / "ranker")
    for folder in ("prompts", "ranker"):
        told = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        assert told["base_model_name_or_path"] == "embedded"


def test_the_average_of_epochs_is_weighed_by_a_gaussian_at_three_quarters() -> None:
    same = [{"p": torch.ones(2)}] * 20
    assert torch.allclose(retrieval.averaged(same)["p"], torch.ones(2))
    weights = retrieval.averaged([{"p": torch.eye(20)[k]} for k in range(20)])["p"]
    # N(15, 1) over 20 epochs, as PromptSRC: at epochs 12 to 18
    assert weights[11:18].tolist() == pytest.approx([0.0044, 0.0540, 0.2420, 0.3989, 0.2420, 0.0540, 0.0044], abs=2e-4)


def test_a_score_begins_at_the_mean_of_the_values(values: RankData) -> None:
    made = ranker.build(RANKER, values)
    assert 0.5 < float(made.model.ranker.score.number.bias) < 3.0
    raw, scaled = (ranker.scales(values, scale) for scale in ("raw", "standard"))
    assert set(raw.values()) == {(0.0, 1.0)}
    assert ranker.scales(values, "auto") == raw
    name = values.objects[0]
    found = values.values(name)[1]
    assert scaled[values.instruction(name)] == pytest.approx((found.mean(), found.std()))


def test_pictures_that_can_not_be_read_are_left_out_wherever_features_are_kept() -> None:
    def load(key: str) -> Image.Image | Bad:
        return Bad(key, "damaged") if key == "b" else Image.new("RGB", (4, 4), (int(key == "c"), 0, 0))

    def encode(images: list[Image.Image]) -> torch.Tensor:
        return torch.tensor([[float(image.getpixel((0, 0))[0])] for image in images])  # type: ignore[index]

    for room in (1 << 20, 0):  # in memory, and in a file
        features = Features(["a", "b", "c"], load, encode, room=room)  # type: ignore[arg-type]
        for held in (features, pickle.loads(pickle.dumps(features))):
            assert held(["c", "a", "c"]).flatten().tolist() == [1.0, 0.0, 1.0]
            assert {bad.image for bad in held.bad} == {"b"}
            with pytest.raises(TrainingError, match="'b' is not among the 2"):
                held(["a", "b"])


def test_a_caption_of_a_picture_that_can_not_be_read_is_refused_or_dropped_by_option() -> None:
    pictures = {f"{k}": Image.new("RGB", (96, 96), (k * 20, 0, 0)) for k in range(8)}
    rows = [
        CaptionRow(f"{k}", f"a {'red' if k % 2 else 'blue'} dog", split="val" if k > 5 else "train") for k in range(9)
    ]
    rows[8] = replace(rows[8], split="train")
    with pytest.raises(DataError, match=r"'8'.*--on-bad skip"):
        dual_prompt.Pictures.read(CaptionData(rows, InMemory(pictures), "nine"), "embedded")
    read = dual_prompt.Pictures.read(CaptionData(rows, InMemory(pictures), "nine", on_bad="skip"), "embedded")
    assert len(read.train.rows) == 6
    assert read.train.dropped["pictures that can't be read"] == 1


def test_recipes_that_are_none_are_refused_and_rates_rise_and_fall() -> None:
    for wrong in (
        {"steps": 0},
        {"batch": 1},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"optimizer": "adam"},
        {"warm": 1.0},
    ):
        with pytest.raises(KnobError):
            recipe(**wrong)
    found = Recipe(steps=100, batch=8, rate=1.0, warm=0.1)
    rates = [found.rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5, abs=0.01)
    assert rates[99] < 0.01


def test_a_ranker_keeps_the_weights_of_its_best_measurement_alone(
    ranked_pictures: ranker.Pictures, tmp_path: Path
) -> None:
    """Tuned towers are large, and nothing averages a ranker's candidates."""
    chosen = replace(recipe(), steps=4, measure_every=1)
    task = RankingTask(ranker.build(RANKER, ranked_pictures.train), ranked_pictures, chosen)
    measured, _ = trainer.train(task, chosen, tmp_path, nothing)
    best = trainer.best_of(task, measured) or measured[0]
    assert len(measured) == 4
    assert [place.stem for place in (tmp_path / CANDIDATES).iterdir()] == [str(best.step)]


def test_a_ranker_of_tuned_towers_scores_pictures_alike_once_it_is_loaded_and_learns_no_more(
    values: RankData, tmp_path: Path
) -> None:
    plan = replace(RANKER, trunk="tuned", rank=2)
    pictures = ranker.Pictures.read(values, plan)
    made = ranker.build(plan, pictures.train)
    made.model.eval()
    made.save_pretrained(tmp_path)
    loaded = ranker.Ranker.from_pretrained(tmp_path)
    learning = [any(weight.requires_grad for weight in one.model.clip.parameters()) for one in (made, loaded)]
    assert learning == [True, False]
    before, after = (ranker.scored(one, pictures.lists, pictures.seen) for one in (made, loaded))
    assert before.keys() == after.keys()
    assert all(np.allclose(before[name], after[name], atol=1e-5) for name in before)
