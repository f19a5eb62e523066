"""Guarded processors: the plain inputs, and the right question and pictures beside them."""

import contextlib
import copy
import pickle

import numpy as np
import pytest
import tiny
import torch
from matchers import Brightness
from PIL import Image

from lvlm_guard import guard, methods, unguard
from lvlm_guard.errors import ImageError, TextError, UnsupportedCallError
from lvlm_guard.families.question import Turn

TURNS = {
    "vicuna": "A chat. USER: <image>\n{} ASSISTANT:",
    "mistral": "[INST] <image>\n{} [/INST]",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\n<image>\n{}<|im_end|><|im_start|>assistant\n",
    "llama 3": (
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "older llava": "### Human: <image>\n{} ### Assistant:",
    "no template": "<image>\n{}",
    "later turn": "USER: <image>\nIs there a cat? ASSISTANT: No.</s>USER: {} ASSISTANT:",
    "picture last": "USER: {}\n<image> ASSISTANT:",
}


@pytest.fixture(params=tiny.FAMILIES)
def pair(request):
    return guard(*tiny.make(request.param), methods.AGLA(matcher=Brightness()))


def turn_of(template):
    _, processor = tiny.make("llava")
    processor.chat_template = template
    return Turn.of(processor, type(processor), "<image>")


def question_of(inputs, row=0):
    return inputs["guard_views"].rows[row][0].text


@pytest.mark.parametrize("template", TURNS, ids=str)
@pytest.mark.parametrize("question", ["Is there a dog?", "Is there a 'USER' sign?\nSay where.", "is there a dog"])
def test_the_question_is_found_between_the_marks_of_the_template(template, question):
    assert turn_of(tiny.LLAVA_TEMPLATE).question(TURNS[template].format(question))[0] == question


GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
OF_GEMMA = (
    "<start_of_turn>system\nYou are careful.<end_of_turn>\n<start_of_turn>user\n<image>\nIs there a dog?<end_of_turn>\n"
    "<start_of_turn>model\n"
)


def test_the_question_is_found_through_the_processors_own_chat_template():
    model, processor = guard(*tiny.make("llava", scale=5.0), methods.AGLA(matcher=Brightness()))
    processor.chat_template = GEMMA
    made = processor(images=tiny.picture(1), text=OF_GEMMA, return_tensors="pt")
    assert question_of(made) == "Is there a dog?"
    later = OF_GEMMA + "No.<end_of_turn>\n<start_of_turn>user\nAnd a cat?<end_of_turn>\n<start_of_turn>model\n"
    assert question_of(processor(images=tiny.picture(1), text=later, return_tensors="pt")) == "And a cat?"
    run = {"max_new_tokens": 2, "return_dict_in_generate": True}
    assert model.generate(**made.to(torch.float64), **run).guard.notes == []


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", ["family's", "unknown"])
@pytest.mark.parametrize("rest", ["\n", "", "{open}assistant\n", "\n{open}assistant\n"])
def test_a_prompt_by_hand_that_goes_on_otherwise_than_the_template_holds_its_question(template, rest):
    _, processor = guard(*tiny.make("llava"), methods.AGLA(matcher=Brightness()))
    of_family = template == "family's"
    processor.chat_template = CHATML if of_family else GEMMA
    opened, closed = ("<|im_start|>", "<|im_end|>") if of_family else ("<start_of_turn>", "<end_of_turn>")
    prompt = f"{opened}user\n<image>\nIs there a dog?{closed}{rest.format(open=opened)}"
    assert question_of(processor(images=tiny.picture(1), text=prompt, return_tensors="pt")) == "Is there a dog?"


def test_a_prompt_without_a_known_mark_is_matched_whole_and_the_trace_says_so():
    model, processor = guard(*tiny.make("llava", scale=5.0), methods.AGLA(matcher=Brightness()))
    run = {"max_new_tokens": 2, "return_dict_in_generate": True}
    made = processor(images=tiny.picture(1), text=OF_GEMMA, return_tensors="pt").to(torch.float64)
    assert "You are careful." in question_of(made)
    assert any("guard_text" in note for note in model.generate(**made, **run).guard.notes)
    assert not model.generate(**made, **run, guard="vcd").guard.notes  # which asks about no text
    stated = processor(images=tiny.picture(1), text=OF_GEMMA, guard_text="a dog", return_tensors="pt")
    assert not model.generate(**stated.to(torch.float64), **run).guard.notes


def test_the_question_of_qwen_leaves_out_the_frame_of_the_picture():
    prompt = (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "Is there a dog?<|im_end|>\n<|im_start|>assistant\n"
    )
    _, processor = tiny.make("qwen2_5_vl")
    assert Turn.of(processor, type(processor), "<|image_pad|>").question(prompt) == ("Is there a dog?", None)


def test_a_request_for_the_answers_format_is_no_part_of_the_question():
    turn = turn_of(tiny.LLAVA_TEMPLATE)
    asked = "USER: <image>\nIs there a dog? Please answer this question with one word. ASSISTANT:"
    assert turn.question(asked)[0] == "Is there a dog?"
    mme = "Is there a dog? Please answer yes or no."  # MME's own words stay, as in AGLA's release
    assert turn.question(f"USER: <image>\n{mme} ASSISTANT:")[0] == mme


def test_messages_give_the_last_user_text():
    turn = turn_of(tiny.LLAVA_TEMPLATE)
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a cat?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        {"role": "user", "content": "And a dog?"},
    ]
    assert turn.asked(talk) == "And a dog?"
    assert turn.asked(talk[:1]) == "Is there a cat?"
    assert turn.asked([]) == ""


def test_guarded_inputs_are_the_plain_inputs_and_the_views(pair):
    _, processor = pair
    plain = unguard(copy.deepcopy(processor))
    prompts = [tiny.prompt(processor, "Is there a dog?"), tiny.prompt(processor, "And what else?")]
    pictures = [tiny.picture(1, 60, 40), tiny.picture(2, 40, 60)]
    ours = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
    theirs = plain(images=pictures, text=prompts, padding=True, return_tensors="pt")
    assert set(ours) - set(theirs) == {"guard_views"}
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert [view.text for view in ours["guard_views"].views()] == ["Is there a dog?", "And what else?"]
    assert ours.to("cpu", torch.float64)["guard_views"] is ours["guard_views"]
    assert {key: value.to("cpu") for key, value in ours.items()}["guard_views"] is ours["guard_views"]


@pytest.mark.parametrize("pair", tiny.TEMPLATED, indirect=True)
def test_chat_templates_hand_on_the_question_tokenized_or_not(pair):
    _, processor = pair
    talk = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": tiny.picture(1, 60, 40)},
                {"type": "text", "text": "Is there a dog? "},
            ],
        }
    ]
    at_once = processor.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert question_of(at_once) == "Is there a dog?"
    rendered = processor.apply_chat_template(talk, add_generation_prompt=True)
    later = processor(images=tiny.picture(1, 60, 40), text=rendered, return_tensors="pt")
    assert question_of(later) == "Is there a dog?"
    assert torch.equal(later["input_ids"], at_once["input_ids"])
    stated = processor.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", guard_text="a cat"
    )
    assert question_of(stated) == "a cat"


@pytest.mark.parametrize("pair", tiny.TEMPLATED, indirect=True)
def test_a_stated_question_goes_with_its_own_request_alone(pair):
    _, processor = pair
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]}]
    cat = processor.apply_chat_template(talk, add_generation_prompt=True, guard_text="Is there a cat?")
    cow = processor.apply_chat_template([talk], add_generation_prompt=True, guard_text=["Is there a cow?"])[0]
    own = processor.apply_chat_template(talk, add_generation_prompt=True)
    typed = "".join(cat)  # the same text, rendered by nobody
    assert cat == cow == own == typed
    pictures = [tiny.picture(1, 60, 40)] * 5
    made = processor(images=pictures, text=[typed, cat, own, cow, typed], padding=True, return_tensors="pt")
    texts = [view.text for view in made["guard_views"].views()]
    assert texts == [
        "Is there a dog?", "Is there a cat?", "Is there a dog?", "Is there a cow?", "Is there a dog?",
    ]  # fmt: skip
    alone = processor(images=pictures[0], text=cat, return_tensors="pt")
    plain = unguard(copy.deepcopy(processor))(images=pictures[0], text=typed, return_tensors="pt")
    assert question_of(alone) == "Is there a cat?"
    assert all(torch.equal(alone[key], plain[key]) for key in plain)
    assert question_of(processor(images=pictures[0], text=pickle.loads(pickle.dumps(cat)))) == "Is there a cat?"


@pytest.mark.parametrize("pair", tiny.TEMPLATED, indirect=True)
def test_batches_of_conversations_keep_each_question(pair):
    _, processor = pair
    talks = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": tiny.picture(i, 60, 40)},
                    {"type": "text", "text": f"What is {i}?"},
                ],
            }
        ]
        for i in range(3)
    ]
    made = processor.apply_chat_template(
        talks, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    assert [view.text for view in made["guard_views"].views()] == ["What is 0?", "What is 1?", "What is 2?"]


def test_guard_text_states_the_question_for_one_or_for_each(pair):
    _, processor = pair
    prompts = [tiny.prompt(processor, "Which?")] * 2
    pictures = [tiny.picture(1, 60, 40), tiny.picture(2, 60, 40)]
    one = processor(images=pictures, text=prompts, guard_text="a dog", return_tensors="pt")
    assert [question_of(one, 0), question_of(one, 1)] == ["a dog", "a dog"]
    each = processor(images=pictures, text=prompts, guard_text=["a dog", "a cat"], return_tensors="pt")
    assert [question_of(each, 0), question_of(each, 1)] == ["a dog", "a cat"]
    with pytest.raises(TextError, match="3 texts for 2 prompts"):
        processor(images=pictures, text=prompts, guard_text=["a", "b", "c"], return_tensors="pt")


@pytest.mark.parametrize("pair", tiny.TEMPLATED, indirect=True)
@pytest.mark.parametrize("texts", [[], ["a", "b"]])
def test_chat_templates_take_one_stated_question_for_each_conversation(pair, texts):
    _, processor = pair
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]}]
    for conversation in (talk, [talk]):
        with pytest.raises(TextError, match=f"{len(texts)} texts for 1 conversations"):
            processor.apply_chat_template(conversation, tokenize=False, guard_text=texts)


@pytest.mark.parametrize("pair", tiny.TEMPLATED, indirect=True)
@pytest.mark.parametrize("count", [0, 2])
def test_placeholders_and_pictures_must_agree(pair, count):
    _, processor = pair
    with pytest.raises(TextError, match="placeholders"):
        processor(images=[tiny.picture(1)], text=tiny.prompt(processor, "What?", count), return_tensors="pt")


def test_guard_images_are_the_second_views(pair):
    _, processor = pair
    text = tiny.prompt(processor, "What?")
    given = tiny.picture(9, 60, 40)
    made = processor(images=tiny.picture(1, 60, 40), guard_images=given, text=text, return_tensors="pt")
    assert made["guard_views"].given
    assert np.array_equal(np.asarray(made["guard_views"].views()[0].local), np.asarray(given))
    with pytest.raises(ImageError, match="one second view each"):
        processor(images=tiny.picture(1), guard_images=[given, given], text=text, return_tensors="pt")


def test_a_second_view_of_another_shape_is_refused_where_tokens_depend_on_it():
    model, processor = guard(*tiny.make("qwen2_5_vl"), methods.AGLA(matcher=Brightness()))
    text = tiny.prompt(processor, "What?")
    made = processor(
        images=tiny.picture(1, 60, 40), guard_images=tiny.picture(2, 30, 90), text=text, return_tensors="pt"
    )
    with pytest.raises(UnsupportedCallError, match="lays the second view out otherwise"):
        model.generate(**made.to(torch.float64), max_new_tokens=2, guard=methods.AGLA(beta=0.0))


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "I;16", "LA"])
def test_pictures_of_any_mode_are_read_by_both_branches(pair, mode):
    model, processor = pair
    picture = Image.new("I;16", (60, 40), 30000) if mode == "I;16" else tiny.picture(1, 60, 40).convert(mode)
    made = processor(images=picture, text=tiny.prompt(processor, "What?"), return_tensors="pt").to(torch.float64)
    out = model.generate(**made, max_new_tokens=2, guard=methods.AGLA(beta=0.0, matcher=Brightness()))
    assert out.shape[0] == 1


@pytest.mark.parametrize("kind", ["array", "tensor", "path", "channels first"])
def test_arrays_tensors_and_paths_are_pictures_too(pair, kind, tmp_path):
    _, processor = pair
    image = tiny.picture(1, 60, 40)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    source = {
        "array": array, "tensor": torch.from_numpy(array.copy()), "path": str(tmp_path / "a.png"),
        "channels first": array.transpose(2, 0, 1),
    }[kind]  # fmt: skip
    made = processor(images=source, text=tiny.prompt(processor, "What?"), return_tensors="pt")
    assert np.array_equal(np.asarray(made["guard_views"].views()[0].image), array)


def test_pictures_that_can_not_be_used_raise_our_error(pair, tmp_path):
    _, processor = pair
    text = tiny.prompt(processor, "What?")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"nothing" * 9)
    for bad in (str(tmp_path / "broken.png"), str(tmp_path / "none.png"), np.zeros((0, 0, 3), np.uint8), object()):
        with pytest.raises(ImageError):
            processor(images=bad, text=text, return_tensors="pt")


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (4000, 1)])
def test_pictures_of_a_few_pixels_are_answered_or_refused_in_our_words(pair, size):
    model, processor = pair

    def answer():
        made = processor(images=Image.new("RGB", size), text=tiny.prompt(processor, "What?"), return_tensors="pt")
        return model.generate(**made.to(torch.float64), max_new_tokens=2)

    with contextlib.suppress(ImageError):
        assert answer().shape[0] == 1


def test_scaled_pixels_are_refused(pair):
    _, processor = pair
    with pytest.raises(UnsupportedCallError, match="do_rescale"):
        processor(images=tiny.picture(1), text=tiny.prompt(processor, "What?"), do_rescale=False, return_tensors="pt")


def test_exif_rotation_is_honoured(pair, tmp_path):
    _, processor = pair
    image = tiny.picture(1, 60, 40).copy()
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 270 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    made = processor(images=str(tmp_path / "turned.png"), text=tiny.prompt(processor, "What?"), return_tensors="pt")
    upright = made["guard_views"].views()[0].image
    assert upright.size == (40, 60)
    assert np.array_equal(np.asarray(upright), np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


def test_the_frame_follows_the_family():
    for family, size in (("llava", (32, 32)), ("llava_next", (60, 40)), ("qwen2_5_vl", (60, 40))):
        model, processor = guard(*tiny.make(family), methods.AGLA(beta=0.0, matcher=Brightness()))
        made = processor(images=tiny.picture(1, 60, 40), text=tiny.prompt(processor, "What?"), return_tensors="pt")
        out = model.generate(**made.to(torch.float64), max_new_tokens=1, return_dict_in_generate=True)
        assert out.guard.view(0).local.size == size


def test_text_alone_is_processed_as_ever(pair):
    _, processor = pair
    made = processor(text="USER: hello ASSISTANT:", return_tensors="pt")
    assert "guard_views" not in made


def test_inputs_travel_between_processes(pair):
    model, processor = pair
    made = processor(images=tiny.picture(1, 60, 40), text=tiny.prompt(processor, "What?"), return_tensors="pt")
    made = made.to(torch.float64)
    method = methods.AGLA(beta=0.01, matcher=Brightness())
    expected = model.generate(**made, max_new_tokens=4, do_sample=False, guard=method)
    arrived = pickle.loads(pickle.dumps(made))
    assert torch.equal(model.generate(**arrived, max_new_tokens=4, do_sample=False, guard=method), expected)
