"""The promises of the engine on the trained embedded model, where decided and undecided steps are mixed as in life."""

import pytest
import recompute
import torch
from PIL import Image
from skimage import data as photographs
from transformers import AutoModelForImageTextToText, AutoProcessor

from lvlm_guard import guard, methods
from lvlm_guard.embedded import MODEL, world
from lvlm_guard.engine.reading import encodes_first
from lvlm_guard.matching import load_matcher, local_view

CAPTION = f"USER: <image>\n{world.CAPTION_PROMPT} ASSISTANT:"
VOTE = methods.Vote(objects=tuple(world.CLASSES))


@pytest.fixture(scope="module")
def pair():
    model = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float64).eval()
    return guard(model, AutoProcessor.from_pretrained(MODEL), "agla")


@pytest.fixture(scope="module")
def pictures():
    scenes = world.scenes("val_cap", 12)
    return [Image.fromarray(image) for image in scenes.image]


def inputs_of(pair, pictures, texts=CAPTION):
    made = pair[1](images=pictures, text=[texts] * len(pictures), padding=True, return_tensors="pt")
    return made.to(torch.float64)


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
def test_captions_equal_a_recomputation_from_scratch_in_every_execution(pair, pictures, sample):
    model, processor = pair
    inputs, method = inputs_of(pair, pictures), methods.AGLA()
    matcher = load_matcher(None, model=model)
    views = inputs["guard_views"].views()
    locals_ = [local_view(view.image, matcher([view.image], [view.text])[0]) for view in views]
    second = {"pixel_values": processor.image_processor(locals_, return_tensors="pt")["pixel_values"].double()}
    torch.manual_seed(2)
    with torch.no_grad():
        expected = recompute.decode(
            model,
            inputs,
            second,
            "agla",
            method.alpha,
            method.beta,
            30,
            sample,
            pad=model.generation_config.pad_token_id,
        )
    for execution in ("lazy", "batched", "auto"):
        torch.manual_seed(2)
        out = model.generate(
            **inputs, max_new_tokens=30, do_sample=sample, guard=method, guard_execution=execution,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert torch.equal(out.sequences, expected)
        if execution == "lazy":
            assert 0 < out.guard.local_forwards < out.guard.global_forwards


@pytest.mark.parametrize("method", [methods.AGLA(), methods.VCD(), VOTE], ids=lambda m: m.name)
def test_a_row_of_a_batch_equals_the_same_request_alone(pair, pictures, method):
    model, _ = pair
    run = {"max_new_tokens": 30, "do_sample": False, "guard": method}
    both = inputs_of(pair, pictures[:6])
    batch = model.generate(**both, **run)
    for row, picture in enumerate(pictures[:6]):
        alone = model.generate(**inputs_of(pair, [picture]), **run)[0]
        assert torch.equal(batch[row, : len(alone)], alone)


def test_a_decided_question_makes_no_mask_and_an_undecided_one_does(pair, pictures):
    model, _ = pair
    masks = []
    for picture in pictures:
        for name in ("dog", "cup", "knife", "person"):
            asked = inputs_of(pair, [picture], f"USER: <image>\n{world.question(name)} ASSISTANT:")
            out = model.generate(**asked, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
            masks.append(out.guard.masks)
            assert (out.guard.masks == 0) == all(step.decided for step in out.guard.steps[0])
    assert 0 < sum(masks) < len(masks)


def test_a_batch_of_questions_makes_masks_for_the_undecided_ones_alone(pair, pictures):
    model, _ = pair
    names = ["dog", "cup", "knife", "person", "book", "bird"] * 2
    texts = [f"USER: <image>\n{world.question(name)} ASSISTANT:" for name in names]
    asked = pair[1](images=pictures, text=texts, return_tensors="pt").to(torch.float64)
    run = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True}
    out = model.generate(**asked, **run)
    undecided = [index for index, steps in enumerate(out.guard.steps) if not steps[0].decided]
    assert 0 < len(undecided) <= 4
    assert out.guard.masks == len(undecided)
    assert [match["image"] for match in out.guard.matches] == undecided
    assert [steps[0].divergence is not None for steps in out.guard.steps] == [
        index in undecided for index in range(len(names))
    ]
    assert torch.equal(out.sequences, model.generate(**asked, **run, guard_execution="batched").sequences)


def test_a_question_beyond_the_matchers_pieces_is_cut_with_a_note(pair, pictures):
    model, _ = pair
    long = " , ".join(["is there a dog in the image ?"] * 9)
    asked = inputs_of(pair, pictures[:1], f"USER: <image>\n{long} ASSISTANT:")
    out = model.generate(
        **asked, max_new_tokens=3, do_sample=False, guard=methods.AGLA(beta=0.0), return_dict_in_generate=True
    )
    assert any("35" in note for note in out.guard.notes)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "camera", "horse"])
def test_photographs_of_any_size_and_mode_are_answered(pair, name):
    model, processor = pair
    photograph = getattr(photographs, name)()
    text = f"USER: <image>\n{world.question('cat')} ASSISTANT:"
    inputs = processor(images=photograph, text=text, return_tensors="pt").to(torch.float64)
    for method in (methods.AGLA(beta=0.0), VOTE, methods.VCD()):
        answer = model.generate(**inputs, max_new_tokens=3, do_sample=False, guard=method)
        assert processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip() in {
            "yes",
            "no",
        }


@pytest.mark.parametrize(
    ("method", "encoded"), [(methods.ICD(), 1), (methods.M3ID(), 1), (methods.VCD(), 2)], ids=lambda m: str(m)[:4]
)
def test_the_same_pictures_under_another_prompt_are_encoded_once(pair, pictures, method, encoded):
    model, _ = pair
    if not encodes_first(model):
        pytest.skip("this release of transformers encodes pictures within the model call")
    calls = []
    with model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1)):
        out = model.generate(
            **inputs_of(pair, pictures[:3]), max_new_tokens=12, num_beams=2, do_sample=False, guard=method,
            return_dict_in_generate=True,
        )  # fmt: skip
    assert out.guard.local_forwards
    assert len(calls) == encoded


def test_captions_open_the_branch_once_for_all_and_only_questions_for_few(pair, pictures):
    model, _ = pair
    out = model.generate(
        **inputs_of(pair, pictures[:8]), max_new_tokens=30, do_sample=False, return_dict_in_generate=True
    )
    wanted = [
        next(k for k, step in enumerate([*steps, None]) if step is None or not step.decided)
        for steps in out.guard.steps
    ]
    assert min(wanted) > 0  # none at the first token, as in questions
    assert out.guard.masks == 8  # and not once more for those that came first
