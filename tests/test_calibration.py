"""Statistics of a model on a user's own pictures: gathered, resumed, refused."""

import shutil

import any_families
import pytest
import tiny
import torch
from matchers import Brightness
from PIL import Image
from safetensors.torch import load_file, save_file

from lvlm_guard import guard, methods, unguard
from lvlm_guard.calibration import Subject, calibrate, kind_of, pictures_in
from lvlm_guard.errors import ImageError, KnobError, UnsupportedModelError, WeightsError
from lvlm_guard.matching import Vocabulary
from lvlm_guard.measured import Statistics, paired
from lvlm_guard.methods.revis import REFUSALS, REVIS


@pytest.fixture(scope="module")
def pair():
    return tiny.make("llava", dtype=torch.float32)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for number in range(9):
        tiny.picture(number, 40, 40).save(place / f"{number}.png")
    return place


def gathered(pair, folder, out, **more):
    subject = Subject(*pair, prompt="What is there?", max_new_tokens=5)
    return calibrate(subject, "revis", pictures_in(folder, 8, 100), out, echo=lambda line: None, **more)


def test_a_killed_run_goes_on_to_the_same_file_and_the_trace_names_it_by_its_digest(
    pair, folder, tmp_path, monkeypatch
):
    out, other = tmp_path / "revis.safetensors", tmp_path / "other.safetensors"
    whole = gathered(pair, folder, other)
    observe, seen = REVIS.observe.__func__, []

    def dies(kind, subject, picture):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(picture)
        return observe(kind, subject, picture)

    monkeypatch.setattr(REVIS, "observe", classmethod(dies))
    with pytest.raises(KeyboardInterrupt):
        gathered(pair, folder, out)
    assert not out.exists()
    monkeypatch.setattr(REVIS, "observe", classmethod(lambda *given: (seen.append(given), observe(*given))[1]))
    found = gathered(pair, folder, out)
    assert len(seen) == 9, "the pictures that were done are not looked at again"
    assert found.digest == whole.digest == Statistics.read(out).digest
    assert found.told["pictures"] == "9"
    assert not out.with_name("revis.safetensors.parts").exists()
    assert gathered(pair, folder, out).digest == whole.digest, "what is finished is not done again"
    model, processor = guard(*pair, "revis", statistics=str(out), check="never")
    inputs = processor(images=tiny.picture(1, 40, 40), text=tiny.prompt(processor, "What?"), return_tensors="pt")
    told = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True).guard.knobs["statistics"]
    assert told == f"revis.safetensors:{whole.digest}"
    unguard(model)
    unguard(processor)


def test_states_are_those_of_the_model_s_own_forward(pair):
    model, processor = pair
    subject, picture = Subject(*pair, prompt="What is there?"), tiny.picture(3, 40, 40)
    answer = subject.tokens("a dog")
    inputs = processor(images=picture, text="<image>\nWhat is there?", return_tensors="pt")
    text = subject.call(picture)[1]["input_ids"]
    inputs["input_ids"] = torch.cat([text, torch.tensor([answer])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    states = model(**inputs, output_hidden_states=True).hidden_states
    found = subject.states(picture, answer)
    for layer in range(len(found) - 1):  # of the last, transformers gives the state behind the norm
        torch.testing.assert_close(found[layer], states[layer + 1][0, -1])
    blind = inputs["input_ids"][inputs["input_ids"] != model.config.image_token_id][None]
    states = model(input_ids=blind, output_hidden_states=True).hidden_states
    torch.testing.assert_close(subject.states(picture, answer, seen=False)[0], states[1][0, -1])
    plain = model.generate(**subject.call(picture)[1], max_new_tokens=128, do_sample=False)[0, text.shape[1] :]
    assert subject.caption(picture) == [t for t in plain.tolist() if t not in processor.tokenizer.all_special_ids]


def test_without_statistics_or_with_others_a_model_is_not_guarded(pair, folder, tmp_path):
    out = tmp_path / "revis.safetensors"
    gathered(pair, folder, out)
    with pytest.raises(KnobError, match="lvlm-guard calibrate revis --images FOLDER"):
        guard(*pair, "revis")
    with pytest.raises(KnobError, match="lvlm-guard calibrate revis"):
        guard(*pair, "agla+revis")
    longer = tiny.make("llava", dtype=torch.float32)
    longer[0].config.text_config.num_hidden_layers = 5
    with pytest.raises(UnsupportedModelError, match=r"with 3 layers of 64 .* with 5 layers"):
        guard(*longer, "revis", statistics=out, check="never")
    with pytest.raises(UnsupportedModelError, match="Qwen2_5_VLForConditionalGeneration"):
        guard(*tiny.make("qwen2_5_vl"), "revis", statistics=out, check="never")
    found = Statistics.read(out)
    Statistics(found.tensors, dict(found.told) | {"method": "vti"}).save(tmp_path / "vti.safetensors")
    with pytest.raises(KnobError, match="statistics for 'vti', not for 'revis'"):
        guard(*pair, "revis", statistics=str(tmp_path / "vti.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(out.read_bytes()[:-40])
    for wrong, words in (("cut", "can't be read"), ("none", "can't be read")):
        with pytest.raises(WeightsError, match=words):
            guard(*pair, "revis", statistics=str(tmp_path / f"{wrong}.safetensors"))
    shutil.copy(next(tmp_path.glob("revis*")), tmp_path / "foreign.safetensors")
    save_file(load_file(out), tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="holds no statistics"):
        guard(*pair, "revis", statistics=str(tmp_path / "foreign.safetensors"))
    assert not hasattr(pair[0], "_lvlm_guard"), "nothing was guarded on the way"


def test_bad_pictures_and_other_settings_are_refused_before_anything_is_lost(pair, folder, tmp_path):
    out = tmp_path / "revis.safetensors"
    with pytest.raises(ImageError, match=r"holds 9 pictures .* at least 20"):
        pictures_in(folder, 20, 100)
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"1 of 10 pictures can't be read.*broken\.png"):
        pictures_in(folder, 8, 100)
    (folder / "broken.png").unlink()
    found = gathered(pair, folder, out)
    subject = Subject(*pair, prompt="Is there a dog?", max_new_tokens=5)
    with pytest.raises(KnobError, match=r"'What is there\?', now 'Is there a dog\?'.*--start-over"):
        calibrate(subject, "revis", pictures_in(folder, 8, 100), out, echo=print)
    assert Statistics.read(out).digest == found.digest
    with pytest.raises(KnobError, match=r"agla needs no statistics.*revis"):
        kind_of("agla")


def test_a_model_that_takes_other_inputs_is_refused_with_what_it_said(folder, tmp_path):
    subject = Subject(*tiny.make("instructblip", dtype=torch.float32), prompt="What is there?", max_new_tokens=3)
    with pytest.raises(UnsupportedModelError, match=r"InstructBlip\w+ can't be questioned as vti needs it \(TypeError"):
        calibrate(subject, "vti", pictures_in(folder, 8, 100), tmp_path / "vti.safetensors", echo=print)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "smolvlm"])
def test_other_families_are_questioned_too(name):
    subject = Subject(*any_families.make(name), prompt="What is there?", max_new_tokens=4)
    picture = tiny.picture(1, 64, 64)
    told = REVIS.observe(subject, picture)
    assert all(bool(torch.isfinite(each).all()) and each.any() for each in told.values())
    assert subject.paid(picture, subject.caption(picture))[1:].all()


def test_revis_gathers_what_its_formulas_say(pair, folder, tmp_path):
    subject = Subject(*pair, prompt="What is there?", max_new_tokens=5)
    paths = pictures_in(folder, 8, 100)
    found = gathered(pair, folder, tmp_path / "x.safetensors").tensors
    raw, prior = [], []
    for path in paths:
        picture = Image.open(path).convert("RGB")
        true, made_up = subject.caption(picture), subject.caption(picture, seen=False)
        raw.append(subject.states(picture, true) - subject.states(picture, true, seen=False))
        refused = [subject.states(picture, subject.tokens(text), seen=False) for text in REFUSALS]
        prior.append(subject.states(picture, made_up, seen=False) - sum(refused) / len(refused))
    raw, prior = sum(raw) / len(raw), sum(prior) / len(prior)
    for layer, u in enumerate(found["u"]):
        onto = prior[layer] / prior[layer].norm()
        torch.testing.assert_close(u, raw[layer] - (raw[layer] @ onto) * onto, rtol=1e-3, atol=1e-4)
        assert abs(float(u @ prior[layer])) < 1e-2 * float(u.norm() * prior[layer].norm())
    assert found["risk"].shape == (9, 3)
    assert float(found["risk"].abs().max()) <= 1 + 1e-6
    assert 0 <= int(found["layer"]) < 3
    assert methods.REVIS.summary(found)


def test_vti_gathers_what_its_formulas_say(pair, folder, tmp_path):
    subject = Subject(*pair, prompt="What is there?", max_new_tokens=5)
    paths = pictures_in(folder, 8, 100)
    found = calibrate(subject, "vti", paths, tmp_path / "vti.safetensors", echo=print).tensors["text"]
    f = []
    for path in paths:
        picture = Image.open(path).convert("RGB")
        answers = [subject.caption(picture, seen=seen) for seen in (True, False)]
        f.append(subject.states(picture, answers[0]) - subject.states(picture, answers[1]))
    rest = found - sum(f) / len(f)
    assert float(rest.norm()) == pytest.approx(1.0, abs=1e-3)
    along = torch.stack([((each - sum(f) / len(f)) * rest).sum() for each in f])
    assert float(along[along.abs().argmax()]) > 0


def test_attention_and_mentions_are_found_where_the_answer_names_objects(pair):
    model, processor = tiny.make("llava", dtype=torch.float32, attention="eager")
    subject = Subject(
        model, processor, "What is there?", spec=Brightness(), vocabulary=Vocabulary.of(("dog", "hot dog", "cat"))
    )
    picture, text = tiny.picture(3, 40, 40), "dog with a hot dog, cats"
    answer = subject.tokens(text)
    at, probability = subject.mentions(picture, answer)
    assert at.tolist() == [text.index("hot"), text.index("cats")], "bytes; the first token has nothing before it"
    claims = ["is there a hot dog in the image?", "is there a cat in the image?"]
    assert probability.tolist() == Brightness().support(picture, claims).tolist()
    found, made = subject.paid(picture, answer), subject.call(picture, answer)[1]
    prompt = made["input_ids"].shape[1] - len(answer)
    attentions = torch.stack(model(**made, output_attentions=True).attentions)[:, 0]  # [L, H, T, T]
    for token in (1, 5, len(answer)):
        row = attentions[:, :, prompt - 1 + token, prompt : prompt + token]
        torch.testing.assert_close(found[token], row.mean(-1), rtol=1e-4, atol=1e-6)
    assert not found[0].any()


def test_mentions_are_compared_where_they_are_as_far_into_their_answers():
    at = torch.tensor([2] * 10 + [40] * 2 + [2] * 3 + [40] * 30)
    real = torch.arange(45) < 12
    level = 1 / at.float()[:, None]  # falls as the answer grows, whatever is named
    (first, second), pairs = paired(level, at, torch.stack([real, ~real]), 5)
    assert pairs == 5
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, torch.tensor([(3 / 2 + 2 / 40) / 5]))
    with pytest.raises(KnobError, match="name 12 objects that are there and 33 that are not, 5 of each"):
        paired(level, at, torch.stack([real, ~real]), 6)
