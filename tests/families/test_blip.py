"""InstructBLIP: the stock tokens where the guard does nothing, and the Q-Former's own text in every view.

`tests/engine/test_tokens.py` compares this family, as the others, with a recomputation from scratch.
"""

import json

import any_families
import pytest
import tiny
import torch
from asking import agla
from matchers import Brightness
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, T5Config
from transformers.models.instructblip.modeling_instructblip import InstructBlipForConditionalGenerationModelOutput

from lvlm_guard import guard, methods, unguard
from lvlm_guard.errors import TextError, UnsupportedCallError, UnsupportedModelError
from lvlm_guard.families.family import Family
from lvlm_guard.families.question import Turn
from lvlm_guard.pretrained import ask, load_model, spoken

QUESTIONS = ["Is there a dog?", "What is there in this picture, and where does it stand?"]
MODES = {
    "greedy": {"do_sample": False, "max_new_tokens": 12},
    "sampling": {"do_sample": True, "max_new_tokens": 12},
    "sampling from all": {"do_sample": True, "top_k": 0, "temperature": 1.3, "max_new_tokens": 12},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 12},
    "beam sampling": {"do_sample": True, "num_beams": 2, "max_new_tokens": 12},
    "penalty and least length": {"repetition_penalty": 1.5, "min_new_tokens": 5, "max_new_tokens": 12},
    "max_length": {"do_sample": False, "max_length": 70},
    "no length given": {"do_sample": False},
    "static cache": {"do_sample": False, "cache_implementation": "static", "max_new_tokens": 12},
}
STOCK = {  # what changes no logit, so that the stock tokens must come out
    "guard=False": False,
    "AGLA of no weight": agla(alpha=0.0, beta=0.0),
    "VCD of no weight": methods.VCD(alpha=0.0, beta=0.0),
    "APC that cuts nothing": methods.APC(beta=0.0),
    "vote of no weight": methods.Vote(lam=0.0, beta=0.0, matcher=Brightness()),
}


@pytest.fixture(scope="module")
def stock():
    """A model and a processor that no guard has touched."""
    return tiny.make("instructblip", dtype=torch.float32, scale=5.0)


@pytest.fixture
def pair():
    return guard(*tiny.make("instructblip", dtype=torch.float32, scale=5.0), agla())


def inputs_of(processor, questions=tuple(QUESTIONS), **extra):
    pictures = [tiny.picture(11 + i, 40, 40 + 8 * i) for i in range(len(questions))]
    return processor(images=pictures, text=list(questions), padding=True, return_tensors="pt", **extra)


@pytest.fixture(scope="module", params=MODES)
def expected(request, stock):
    torch.manual_seed(3)
    model, processor = stock
    return MODES[request.param], model.generate(**inputs_of(processor), **MODES[request.param])


@pytest.mark.parametrize("same", STOCK)
def test_a_guard_that_changes_nothing_gives_the_stock_tokens_of_a_padded_batch(pair, expected, same):
    mode, tokens = expected
    model, processor = pair
    inputs = inputs_of(processor)
    assert (inputs["attention_mask"][0] == 0).any()
    torch.manual_seed(3)
    assert torch.equal(model.generate(**inputs, **mode, guard=STOCK[same]), tokens)  # prompt and answer, as stock


def test_a_guard_that_changes_nothing_gives_the_stock_logits_and_states(pair, stock):
    wanted = {
        "max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True,
        "output_hidden_states": True, "output_scores": True,
    }  # fmt: skip
    plain = stock[0].generate(**inputs_of(stock[1]), **wanted)
    ours = pair[0].generate(**inputs_of(pair[1]), **wanted, guard=methods.VCD(alpha=0.0, beta=0.0))
    for a, b in zip(plain.logits + plain.scores, ours.logits + ours.scores, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(plain.hidden_states, ours.hidden_states, strict=True):
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a, b, strict=True))
    stacked = pair[0].generate(**inputs_of(pair[1]), **wanted, guard_execution="batched")
    assert stacked.hidden_states[0][0].shape == plain.hidden_states[0][0].shape


def test_a_prompt_without_a_mask_or_with_a_configuration_is_read_as_stock_reads_it(pair, stock):
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=7, do_sample=False)
    plain, ours = inputs_of(stock[1]), inputs_of(pair[1])
    none = methods.APC(beta=0.0)
    assert torch.equal(
        pair[0].generate(**ours, generation_config=config, guard=none),
        stock[0].generate(**plain, generation_config=config),
    )
    del plain["attention_mask"], ours["attention_mask"]  # then the padding is read as text
    run = {"max_new_tokens": 7, "do_sample": False}
    assert torch.equal(pair[0].generate(**ours, **run, guard=none), stock[0].generate(**plain, **run))


def test_the_language_models_settings_are_gone_by_as_in_stock(pair):
    model, processor = pair
    inputs = inputs_of(processor)
    unguard(model).generation_config.max_new_tokens = 9  # the outer model's, which stock does not look at
    model.language_model.generation_config.max_new_tokens = 3
    guard(model, processor, agla())
    length = inputs["input_ids"].shape[1]
    for kind in (False, None, methods.APC(beta=0.0)):
        assert model.generate(**inputs, guard=kind).shape[1] == length + 3
    model.generation_config.max_new_tokens = 2  # guarded, a model shows the settings that count
    assert model.generate(**inputs).shape[1] == length + 2
    assert unguard(model).generation_config.max_new_tokens == 9


@pytest.mark.parametrize("execution", ["lazy", "batched", "auto"])
@pytest.mark.parametrize("rule", ["agla", "vcd"])
def test_the_q_former_reads_each_rows_own_question_in_every_view(pair, rule, execution):
    model, processor = pair
    inputs = inputs_of(processor)
    masks = inputs["qformer_attention_mask"].bool()
    questions = [ids[mask].tolist() for ids, mask in zip(inputs["qformer_input_ids"], masks, strict=True)]
    read = []

    def note(module, args, kwargs):
        mask = kwargs["attention_mask"][:, model.config.num_query_tokens :].bool()
        read.extend(ids[kept].tolist() for ids, kept in zip(kwargs["input_ids"], mask, strict=True))

    handle = model.qformer.register_forward_pre_hook(note, with_kwargs=True)
    method = agla(beta=0.01) if rule == "agla" else methods.VCD(beta=0.01)
    model.generate(**inputs, max_new_tokens=4, do_sample=False, guard=method, guard_execution=execution)
    handle.remove()
    assert len(read) >= 4  # both rows, for both views
    assert read == questions * (len(read) // 2)


def test_a_row_that_alone_wants_the_branch_is_read_with_its_own_question(pair):
    model, processor = pair
    inputs = inputs_of(processor, [f"What is {i}?" + " Say more." * (i % 2) for i in range(6)])
    few = 0
    for beta in (0.3, 0.5, 0.7, 0.9):
        run = {"max_new_tokens": 3, "do_sample": False, "guard": agla(beta=beta), "return_dict_in_generate": True}
        lazy = model.generate(**inputs, **run, guard_execution="lazy")
        assert torch.equal(lazy.sequences, model.generate(**inputs, **run, guard_execution="batched").sequences)
        few += lazy.guard.masks not in (0, 6)
    assert few


def test_the_guard_changes_answers_and_a_view_of_ones_own_decides_how(pair):
    model, processor = pair
    run = {"max_new_tokens": 12, "do_sample": False, "guard": agla(alpha=9.0, beta=0.001)}
    plain = model.generate(**inputs_of(processor), max_new_tokens=12, do_sample=False, guard=False)
    same = [view.image for view in inputs_of(processor)["guard_views"].views()]
    other = [tiny.picture(90), tiny.picture(91)]
    assert torch.equal(model.generate(**inputs_of(processor, guard_images=same), **run), plain)
    assert not torch.equal(model.generate(**inputs_of(processor, guard_images=other), **run), plain)


def test_a_call_outside_generate_is_the_models_own(pair, stock):
    inputs = inputs_of(stock[1])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    plain, ours = stock[0](**inputs, labels=labels), pair[0](**inputs, labels=labels)
    assert type(ours) is type(plain) is InstructBlipForConditionalGenerationModelOutput
    assert torch.equal(ours.loss, plain.loss)
    assert torch.equal(ours.logits, plain.logits)


def test_the_class_is_given_back_and_a_saved_model_is_plain(pair, stock, tmp_path):
    model, processor = pair
    inputs = inputs_of(stock[1])
    expected = stock[0].generate(**inputs, max_new_tokens=6, do_sample=False)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "InstructBlipForConditionalGeneration"
    ]
    loaded = InstructBlipForConditionalGeneration.from_pretrained(tmp_path)
    loaded.language_model.generation_config = stock[0].language_model.generation_config
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=6, do_sample=False), expected)
    unguard(model)
    unguard(processor)
    assert type(model) is InstructBlipForConditionalGeneration
    assert torch.equal(model.generate(**inputs_of(processor), max_new_tokens=6, do_sample=False), expected)


@pytest.mark.parametrize("order", ["dispatched first", "guarded first"])
def test_a_device_map_hides_no_step_from_the_guard(pair, order):
    from accelerate import dispatch_model

    run = {"max_new_tokens": 10, "do_sample": False, "guard": agla(alpha=9.0, beta=0.001)}
    expected = pair[0].generate(**inputs_of(pair[1]), **run)
    model, processor = tiny.make("instructblip", dtype=torch.float32, scale=5.0)
    parts = ("vision_model", "query_tokens", "qformer", "language_projection", "language_model")

    def dispatch():
        return dispatch_model(model, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)

    if order == "dispatched first":
        model = dispatch()
        guard(model, processor)
    else:
        guard(model, processor)
        model = dispatch()
    assert "forward" in vars(model)
    assert torch.equal(model.generate(**inputs_of(processor), **run), expected)


def test_a_peft_model_is_guarded_within(pair):
    from peft import LoraConfig, get_peft_model

    model, processor = tiny.make("instructblip", dtype=torch.float32, scale=5.0)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))  # adapters of no weight yet
    guard(wrapped, processor)
    run = {"max_new_tokens": 10, "do_sample": False, "guard": agla(alpha=9.0, beta=0.001)}
    expected = pair[0].generate(**inputs_of(pair[1]), **run)
    assert torch.equal(wrapped.generate(**inputs_of(processor), **run), expected)


def test_text_alone_is_answered_by_the_language_model(pair):
    model, processor = pair
    ids = processor(text="Is there a dog?", return_tensors="pt")["input_ids"]
    run = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(input_ids=ids, **run), model.language_model.generate(input_ids=ids, **run))


@pytest.mark.parametrize(
    "prompt", ["Is there a dog?", "Is there a dog? Please answer this question with one word.",
               "Question: Is there a dog? Answer:", "Question: Is there a dog? Short answer:"],
)  # fmt: skip
def test_the_question_is_found_in_a_bare_prompt_and_in_the_models_own_forms(pair, prompt):
    token = Family().image_token(pair[1])
    assert Turn.of(pair[1], type(pair[1]), token).question(prompt) == ("Is there a dog?", None)
    assert inputs_of(pair[1], [prompt])["guard_views"].views()[0].text == "Is there a dog?"


def test_a_prompt_takes_one_picture(pair):
    _, processor = pair
    with pytest.raises(TextError, match=r"for 1 pictures .* but 2 were given"):
        processor(images=[tiny.picture(1), tiny.picture(2)], text="Are they alike?", return_tensors="pt")


def test_inputs_that_are_not_whole_are_refused(pair):
    model, processor = pair
    run = {"max_new_tokens": 2, "do_sample": False}
    inputs = dict(inputs_of(processor))
    views = inputs["guard_views"]
    without = {key: value for key, value in inputs.items() if not key.startswith("qformer")}
    with pytest.raises(UnsupportedCallError, match=r"qformer_input_ids did not come with it.*\*\*inputs"):
        model.generate(**without, **run)
    with pytest.raises(UnsupportedCallError, match="pixel_values and qformer_input_ids did not come"):
        model.generate(input_ids=inputs["input_ids"], guard_views=views, **run)
    with pytest.raises(UnsupportedCallError, match="by name"):
        model.generate(inputs["pixel_values"], guard_views=views, **run)
    with pytest.raises(UnsupportedCallError, match="as input_ids"):
        model.generate(pixel_values=inputs["pixel_values"], guard_views=views, **run)
    with pytest.raises(UnsupportedCallError, match="interpolate_pos_encoding"):
        model.generate(**inputs, **run, interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="max_new_token"):
        model.generate(**inputs, max_new_token=2)


def test_a_plain_call_takes_what_stock_takes(pair, stock):
    inputs, run = inputs_of(stock[1]), {"max_new_tokens": 4, "do_sample": False}
    bare = {key: inputs[key] for key in ("pixel_values", "qformer_input_ids", "qformer_attention_mask")}
    assert torch.equal(pair[0].generate(**bare, **run, guard=False), stock[0].generate(**bare, **run))
    order = ("pixel_values", "qformer_input_ids", "qformer_attention_mask", "input_ids", "attention_mask")
    places = [inputs[key] for key in order]
    assert torch.equal(pair[0].generate(*places, **run, guard=False), stock[0].generate(**inputs, **run))


def test_the_flan_t5_variant_is_refused(stock):
    small = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    vision = stock[0].config.vision_config.to_dict()
    config = InstructBlipConfig(
        vision_config=vision,
        qformer_config=stock[0].config.qformer_config.to_dict(),
        text_config=small.to_dict(),
        image_token_index=4,
    )
    model = InstructBlipForConditionalGeneration(config)
    with pytest.raises(UnsupportedModelError, match="the model is an encoder-decoder"):
        guard(model, stock[1])
    assert type(model) is InstructBlipForConditionalGeneration


def test_a_checkpoint_without_placeholders_is_refused():
    model, processor = tiny.make("instructblip")
    model.config.image_token_index = None
    with pytest.raises(UnsupportedModelError, match="names no image token"):
        guard(model, processor)


@pytest.fixture(scope="module")
def folder(stock, tmp_path_factory):
    """The tiny model as a checkpoint on disk, its tokenizer padding left as Llama's do."""
    place = tmp_path_factory.mktemp("instructblip")
    stock[0].save_pretrained(place)
    stock[1].save_pretrained(place)
    settings = json.loads((place / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    return str(place)


def test_a_folder_is_loaded_asked_guarded_and_its_answers_do_not_depend_on_the_batch(folder):
    model, processor = guard(*load_model(folder, device="cpu", dtype="float32"), agla())
    assert model.dtype == torch.float32
    pictures = [tiny.picture(11), tiny.picture(12)]
    made = ask(processor, [[picture] for picture in pictures], QUESTIONS)
    assert [view.text for view in made["guard_views"].views()] == QUESTIONS
    start = made["input_ids"].shape[1]
    run = {"max_new_tokens": 8, "do_sample": False}
    together = [spoken(processor, row[start:].tolist()) for row in model.generate(**made, **run)]
    for picture, question, answer in zip(pictures, QUESTIONS, together, strict=True):
        one = ask(processor, [[picture]], [question])
        tokens = model.generate(**one, **run)[0, one["input_ids"].shape[1] :]
        assert spoken(processor, tokens.tolist()) == answer != ""


def test_a_plain_processor_is_asked_the_same(folder, stock):
    _, processor = load_model(folder, device="cpu", dtype="float32")
    made = ask(processor, [[tiny.picture(11)]], [QUESTIONS[0]])
    theirs = stock[1](images=[tiny.picture(11)], text=[QUESTIONS[0]], return_tensors="pt")
    assert set(made) == set(theirs)
    assert all(torch.equal(made[key], theirs[key]) for key in theirs)


def test_half_precision_answers(folder):
    model, processor = guard(*load_model(folder, device="cpu", dtype="bfloat16"), agla(beta=0.01))
    made = ask(processor, [[tiny.picture(11)]], [QUESTIONS[0]]).to(torch.bfloat16)
    runs = [
        model.generate(**made, max_new_tokens=1, do_sample=False, guard_execution=execution)
        for execution in ("lazy", "batched")
    ]
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", ["blip_2", "instructblip"])
def test_another_prompt_is_read_in_a_batch_as_alone_though_padding_stands_behind_the_picture(name):
    small = name == "instructblip"
    model, processor = tiny.make(name) if small else any_families.make(name, dtype=torch.float64)
    guard(model, processor, methods.MARINE(finds=lambda image: ["dog"]), check="never")
    questions, pictures = ["Is there a dog?", "Is there a red traffic light?"], [tiny.picture(1), tiny.picture(2)]
    how = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = []
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        inputs = processor(images=pictures[rows], text=questions[rows], padding=True, return_tensors="pt")
        found.append(torch.stack(model.generate(**inputs.to(torch.float64), **how).logits, 1))
    torch.testing.assert_close(found[0], torch.cat(found[1:]), rtol=0, atol=1e-5)
    unguard(model)
