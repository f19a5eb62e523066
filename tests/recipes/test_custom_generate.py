"""The folder `recipes`, by transformers' own loader: guarded as guard() does it, or an error; no model is changed."""

import copy
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from asking import RUN, agla
from transformers import AutoModelForImageTextToText, TextStreamer

from lvlm_guard import guard
from lvlm_guard.errors import MissingViewError, TextError, UnsupportedCallError, UnsupportedModelError

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {"custom_generate": str(ROOT / "recipes"), "trust_remote_code": True}


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def plain(request):
    return tiny.make(request.param, scale=5.0)


def asked(processor, seed=1):
    return {"images": tiny.picture(seed), "text": tiny.prompt(processor, "What?", 1), "processor": processor}


def guarded(plain, rows, **more):
    """The answer of the front door."""
    model, processor = guard(*copy.deepcopy(plain), agla(beta=0.1))
    texts, images = [row["text"] for row in rows], [row["images"] for row in rows]
    made = processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")
    return model.generate(**made.to(torch.float64), **RUN, **more)


def test_the_recipe_answers_as_a_guarded_model_and_leaves_model_and_processor_plain(plain):
    model, processor = plain
    kinds, held = (type(model), type(processor)), (set(vars(model)), set(vars(processor)))
    ask = asked(processor)
    told = {"return_dict_in_generate": True}
    out = model.generate(**ask, **RUN, **RECIPE, method=agla(beta=0.1), **told)
    expected = guarded(plain, [ask], **told)
    assert torch.equal(out.sequences, expected.sequences)
    assert out.guard.guarded
    assert out.guard.local_forwards == expected.guard.local_forwards > 0
    made = processor(images=[ask["images"]], text=[ask["text"]], return_tensors="pt").to(torch.float64)
    assert not torch.equal(out.sequences, model.generate(**made, **RUN))
    assert (type(model), type(processor)) == kinds
    assert (set(vars(model)), set(vars(processor))) == held


def test_inputs_that_were_made_already_are_taken_with_their_pictures_and_refused_with_others(plain):
    model, processor = plain
    ask = asked(processor)
    made = processor(images=ask["images"], text=ask["text"], return_tensors="pt").to(torch.float64)
    expected = guarded(plain, [ask])
    assert torch.equal(model.generate(**made, **ask, **RUN, **RECIPE, method=agla(beta=0.1)), expected)
    with pytest.raises(TextError, match="not those of text="):
        model.generate(**made, **{**ask, "text": ask["text"] + " Well"}, **RUN, **RECIPE, method=agla())
    with pytest.raises(MissingViewError):
        model.generate(**made, processor=processor, **RUN, **RECIPE, method=agla())
    with pytest.raises(TextError, match="without a prompt"):
        model.generate(**made, processor=processor, images=ask["images"], **RUN, **RECIPE, method=agla())


def test_a_batch_a_streamer_and_beams_go_through_the_recipe(plain):
    model, processor = plain
    rows = [asked(processor, 1), asked(processor, 2)]
    both = {"images": [row["images"] for row in rows], "text": [row["text"] for row in rows], "processor": processor}
    beams = {"num_beams": 2}
    out = model.generate(**both, **RUN, **beams, **RECIPE, method=agla(beta=0.1))
    assert torch.equal(out, guarded(plain, rows, **beams))
    said = []
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True)
    streamer.on_finalized_text = lambda text, stream_end=False: said.append(text)
    model.generate(**rows[0], **RUN, **RECIPE, method=agla(beta=0.1), streamer=streamer)
    assert "".join(said).strip()


def test_a_call_without_its_processor_or_of_a_guarded_model_raises(plain):
    model, processor = plain
    ask = asked(processor)
    with pytest.raises(UnsupportedModelError, match="none was passed along"):
        model.generate(images=ask["images"], text=ask["text"], **RUN, **RECIPE)
    pair = guard(*copy.deepcopy(plain), agla())
    made = pair[1](images=ask["images"], text=ask["text"], return_tensors="pt").to(torch.float64)
    with pytest.raises(UnsupportedCallError, match="guarded already"):
        pair[0].generate(**made, processor=pair[1], **RUN, **RECIPE)


def test_a_repository_that_holds_the_recipe_is_guarded_by_it_and_never_twice(tmp_path):
    plain = tiny.make("llava", scale=5.0)
    for thing in plain:
        thing.save_pretrained(tmp_path)
    shutil.copytree(ROOT / "recipes" / "custom_generate", tmp_path / "custom_generate")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=True, dtype=torch.float64)
    ask = asked(plain[1])
    assert torch.equal(model.generate(**ask, **RUN, method=agla(beta=0.1)), guarded(plain, [ask]))
    with pytest.raises(UnsupportedModelError, match="generate of its own"):
        guard(model, plain[1], agla())


def test_the_block_of_the_folders_readme_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "recipes" / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    found: dict = {}
    exec(block, found)
    assert found["tokens"].shape[0] == 1
