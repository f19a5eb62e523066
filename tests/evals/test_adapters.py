"""Adapters beside methods: each answers with its own weights, and everyone else without."""

import json

import peft
import pyarrow.parquet as pq
import pytest
import torch

from lvlm_guard.errors import KnobError, WeightsError
from lvlm_guard.evals.decoders.lineup import adapters_of, decoders_of
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.record import weights_of
from lvlm_guard.evals.infer.server import server_run
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.pretrained import ask as prompted
from lvlm_guard.pretrained import load_model, spoken

SETTINGS = Settings(tasks=("world_chair",), methods=("vote",), controls=False, captions=6, batch=6)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters that change what is said."""
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_alpha=4)
        folder = tmp_path_factory.mktemp("adapter") / "tuned"
        peft.get_peft_model(load_model()[0], config).save_pretrained(folder)
        made.append(folder)
    return made


def said(adapter, items):
    """What a model loaded with the adapter alone says of the scenes of world_chair."""
    from PIL import Image

    from lvlm_guard.embedded.world import CAPTION_PROMPT, scenes

    model, processor = load_model(adapter=None if adapter is None else str(adapter))
    pictures = [Image.fromarray(image) for image in scenes("test_cap", items).image]
    inputs = prompted(processor, [[picture] for picture in pictures], [CAPTION_PROMPT] * items)
    out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    return [spoken(processor, row[inputs["input_ids"].shape[1] :].tolist()).strip() for row in out]


def answers(settings, folder):
    """Ask, and return (decoder, seed) -> texts in the order of the items."""
    ask(settings, folder, echo=lambda _: None, bar=False, workers=1)
    found = {}
    for row in pq.read_table(folder / "answers.parquet").to_pylist():
        found.setdefault((row["decoder"], row["seed"]), []).append(row["text"].strip())
    return found


def test_each_seed_answers_with_its_own_adapter_and_all_others_with_none(adapters, tmp_path):
    told = tuple(f"mine={folder}" for folder in adapters)
    settings = Settings.of(Settings(**{**vars(SETTINGS), "adapters": told}).to_dict())
    found, without = answers(settings, tmp_path / "with"), answers(SETTINGS, tmp_path / "without")
    for seed, folder in enumerate(adapters):
        assert found["mine", seed] == said(folder, 6)
    assert found["greedy", 0] == said(None, 6) == without["greedy", 0]
    assert found["greedy", 0] not in (found["mine", 0], found["mine", 1])
    assert found["vote", 0] == without["vote", 0]
    (mine,) = (d for d in json.loads((tmp_path / "with/asked.json").read_text())["decoders"] if d["adapters"])
    assert (mine["role"], mine["baseline"], mine["seeds"]) == ("adapter", "greedy", 2)


@pytest.mark.slow
def test_an_adapter_s_questions_have_scores_of_their_own(adapters, tmp_path):
    settings = Settings(
        tasks=("world_pope",), methods=("vote",), controls=False, limit=1, batch=8, adapters=(f"mine={adapters[0]}",)
    )
    ask(settings, tmp_path, echo=lambda _: None, bar=False, workers=1)
    assert json.loads((tmp_path / "asked.json").read_text())["words"].keys() == {"yes", "no"}
    scores = {}
    for row in pq.read_table(tmp_path / "answers.parquet").to_pylist():
        if row["split"] == "test":
            scores.setdefault(row["decoder"], []).append(row["score"])
    assert None not in scores["mine"]
    assert max(abs(a - b) for a, b in zip(scores["mine"], scores["greedy"], strict=True)) > 0.01


def test_another_adapter_is_another_run(adapters, tmp_path):
    for folder in adapters[:1]:
        settings = Settings(**{**vars(SETTINGS), "captions": 1, "adapters": (f"mine={folder}",)})
        ask(settings, tmp_path, echo=lambda _: None, bar=False, workers=1)
    other = Settings(**{**vars(settings), "adapters": (f"mine={adapters[1]}",)})
    with pytest.raises(DataError, match="--start-over"):
        ask(other, tmp_path, echo=lambda _: None, bar=False, workers=1)
    assert adapters[0] in weights_of(settings)


def test_an_adapter_is_named_by_its_folder_unless_told_otherwise():
    assert adapters_of(Settings(adapters=("runs/a", "b=x", "b=y"))) == {"a": ("runs/a",), "b": ("x", "y")}


@pytest.mark.parametrize("told", ["greedy=x", "vote=x", "=x", "x="])
def test_a_name_that_is_taken_or_missing_is_refused(told):
    with pytest.raises(KnobError, match="--adapter"):
        decoders_of(Settings(adapters=(told,)), None)


def test_a_server_is_asked_for_its_own_adapters_instead():
    with pytest.raises(DataError, match="--lora-modules"):
        server_run(Settings(model="m", server="http://127.0.0.1:1", adapters=("a=b",)))


def test_a_folder_without_an_adapter_is_refused_with_what_belongs_there(tmp_path):
    with pytest.raises(WeightsError, match=r"adapter_config\.json"):
        load_model(adapter=str(tmp_path))
