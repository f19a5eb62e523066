"""`DualPromptRetriever` on tiny CLIPs: scores, ranks, weights, folders, and that no answer leaks through weights."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny_clip
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch.nn.functional import normalize

import lvlm_guard.adapters as adapters
from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.evaluation.metrics import ranks, recall
from lvlm_guard.adapters.losses import LossInputs, LossStack
from lvlm_guard.adapters.prompts import coop, dual_prompt
from lvlm_guard.adapters.retrieval.folder import make
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.errors import KnobError, TextError, UnsupportedCallError, UnsupportedModelError, WeightsError

TOKENIZER, PROCESSOR = tiny_clip.tokenizer(), tiny_clip.image_processor()
INPUTS = Inputs.of(tiny_clip.clip(), tokenizer=TOKENIZER, image_processor=PROCESSOR)
TEXTS = ["a red dog", "a blue cat on the bus", "three green cups", "the small horse"]


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]


def retriever(prompted=True, seed=0, clip=None, **options):
    torch.manual_seed(seed)
    config = dual_prompt(TOKENIZER, depth=2, coupling_rank=2) if prompted else None
    return make(clip or tiny_clip.clip(), INPUTS, config=config, **options)


def trained(found, steps=2):
    """Train as a training loop would: weighted captions against their swaps, plain ones against each other."""
    model = found.model.train()
    pixels, texts = found.image_inputs(pictures(4)), found.text_inputs(TEXTS)
    swaps = found.text_inputs(["a red cat", "a blue dog on the bus", "two green cups", "the large horse"])
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        image, text = model(pixels, texts.input_ids, texts.attention_mask)
        negative = model.encode_text(swaps.input_ids, swaps.attention_mask)
        inputs = LossInputs(scores=image @ text.T, negatives=(image * negative).sum(-1, keepdim=True))
        LossStack(tau=0.1)(inputs).total.backward()
        optimizer.step()
    model.eval()
    return found


def test_an_untuned_retriever_scores_as_the_clip_itself():
    clip = tiny_clip.clip()
    inputs = TOKENIZER(TEXTS, padding=True, return_tensors="pt")
    pixels = PROCESSOR(images=pictures(3), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        text = normalize(clip.get_text_features(**inputs.convert_to_tensors("pt")).pooler_output, dim=-1)
        image = normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    got = retriever(prompted=False).score(pictures(3), TEXTS)
    torch.testing.assert_close(got, image @ text.T)
    assert retriever(prompted=False).config is None


def test_training_reaches_prompts_and_leaves_clip_as_it_was():
    found = retriever()
    before = {name: value.clone() for name, value in found.model.state_dict().items()}
    trained(found, steps=3)
    learned = {name for name, parameter in found.model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in learned} == {"clip"}
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in learned), name


def test_a_step_under_bfloat16_autocast_gives_every_learnable_tensor_a_finite_gradient():
    found = trained(retriever())
    pixels, texts = found.image_inputs(pictures(4)), found.text_inputs(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image, text = found.model(pixels, texts.input_ids, texts.attention_mask)
    LossStack(hard_negative=0, tau=0.1)(LossInputs(scores=image @ text.T)).total.backward()
    for name, parameter in found.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_factors_of_a_batch_are_those_of_each_pair_alone():
    found = retriever(strength=1.0)
    images = pictures(len(TEXTS))
    frozen, _ = found.frozen_features(found.image_inputs(images))
    inputs = found.text_inputs(TEXTS)
    batch = found.factors(frozen, inputs)
    assert (batch[~inputs.words] == 1).all()
    for row, (image, text) in enumerate(zip(images, TEXTS, strict=True)):
        alone = [weight.factor for weight in found.word_weights(image, text)]
        torch.testing.assert_close(batch[row][inputs.words[row]], torch.tensor(alone), atol=1e-4, rtol=0)


def test_a_copy_of_a_model_gives_the_same_features():
    made = retriever()
    pixels, copied = made.image_inputs(pictures(2)), copy.deepcopy(made.model)
    assert torch.equal(copied.images(pixels), made.model.images(pixels))
    assert torch.equal(copied.images(pixels, frozen=True), made.model.images(pixels, frozen=True))


def test_frozen_features_are_plain_clips_and_leave_every_flag_as_it_was():
    found = trained(retriever())
    flags = [p.requires_grad for p in found.model.parameters()]
    image, text = found.frozen_features(found.image_inputs(pictures(2)), TEXTS)
    plain = retriever(prompted=False)
    assert torch.equal(image, plain.image_features(pictures(2)))
    assert torch.equal(text, plain.text_features(TEXTS))
    assert [p.requires_grad for p in found.model.parameters()] == flags
    assert not torch.allclose(found.text_features(TEXTS), text, atol=1e-3)


def test_word_weights_follow_their_definition_piece_by_piece():
    found = retriever(strength=0.5)
    (image,) = pictures(1, seed=5)
    got = found.word_weights(image, "a red dog")
    assert [weight.word for weight in got] == ["a", "red", "dog"]
    plain = retriever(prompted=False)
    blank = normalize(plain.model.encode_image(torch.zeros(1, 3, 32, 32)), dim=-1)
    expected = [
        abs(float(plain.text_features([w]) @ (blank - plain.image_features([image])).T)) for w in ("a", "red", "dog")
    ]
    assert [weight.raw for weight in got] == pytest.approx(expected, abs=1e-5)
    mean = sum(expected) / 3
    factors = [min(4, max(0.25, 1 + 0.5 * (w / mean - 1))) for w in expected]
    assert [weight.factor for weight in got] == pytest.approx(factors, abs=1e-4)


def test_a_pairwise_score_uses_the_weights_of_its_own_picture_alone():
    found = trained(retriever(strength=1.0))
    images = pictures(3)
    scores = found.score(images, TEXTS, weighting="pairwise")
    assert not torch.allclose(scores, found.score(images, TEXTS), atol=1e-4)
    for i, image in enumerate(images):
        for j, text in enumerate(TEXTS):
            alone = found.score([image], [text], weighting="pairwise")
            torch.testing.assert_close(scores[i, j], alone[0, 0], atol=1e-5, rtol=0)
            weights = found.word_weights(image, text)
            inputs = found.text_inputs([text])
            factors = torch.ones(inputs.words.shape)
            factors[inputs.words] = torch.tensor([weight.factor for weight in weights])
            feature = found.model.encode_text(inputs.input_ids, inputs.attention_mask, factors)
            by_hand = found.image_features([image]) @ feature.T
            torch.testing.assert_close(scores[i, j], by_hand[0, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("weighting", ["none", "two-stage", "pairwise"])
def test_the_order_in_which_captions_come_tells_nothing_of_their_pictures(weighting):
    found = retriever(strength=2.0, top=3)
    images, order = pictures(4), [2, 0, 3, 1]
    rows, columns = found.directed_scores(images, TEXTS, weighting=weighting)
    turned_rows, turned_columns = found.directed_scores(images, [TEXTS[i] for i in order], weighting=weighting)
    torch.testing.assert_close(turned_rows, rows[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(turned_columns, columns[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("weighting", ["two-stage", "pairwise"])
def test_recall_is_at_chance_for_captions_of_random_pictures_and_weights_do_not_lift_it(weighting):
    found = retriever(strength=3.0, top=5)
    rng = np.random.default_rng(0)
    words = [
        "red",
        "blue",
        "green",
        "yellow",
        "orange",
        "purple",
        "small",
        "large",
        "two",
        "three",
        "dog",
        "cat",
        "car",
        "bus",
        "apple",
        "elephant",
        "cup",
        "bowl",
    ]
    texts = [" ".join(rng.permutation(words)[:4]) for _ in range(24)]
    images = pictures(24, seed=1)
    rows, columns = found.directed_scores(images, texts, weighting=weighting)
    shares = []
    for _ in range(40):
        own = np.eye(24, dtype=bool)[:, rng.permutation(24)]
        shares.append((recall(ranks(rows, own))[1], recall(ranks(columns, own.T))[1]))
    assert np.mean(shares, 0) == pytest.approx([1 / 24, 1 / 24], abs=0.02)


def test_weights_of_a_captions_own_picture_used_for_all_would_lift_recall_which_the_retriever_never_does():
    """The leak that the rule is about, made on purpose: so that the tests above are known to look for a real thing."""
    found = retriever(prompted=False, strength=3.0)
    images, text = pictures(8, seed=2), "red blue dog cat bus cup"
    same = [text] * len(images)
    honest = found.score(images, same, weighting="pairwise")
    assert torch.allclose(honest, honest[:, :1].expand_as(honest), atol=1e-5)
    inputs = found.text_inputs(same)
    factors = torch.ones(inputs.words.shape)
    for j, image in enumerate(images):
        factors[j, inputs.words[j]] = torch.tensor([w.factor for w in found.word_weights(image, text)])
    leaked = found.image_features(images) @ found.model.encode_text(inputs.input_ids, None, factors).detach().T
    assert not torch.allclose(leaked, leaked[:, :1].expand_as(leaked), atol=1e-3)


def test_ranking_a_picture_and_a_caption_gives_the_order_of_their_scores():
    found = retriever(strength=0.0)
    images = pictures(5)
    scores = found.score(images, TEXTS)
    by_image = found.rank(images[1], TEXTS)
    assert [r.candidate for r in by_image] == scores[1].argsort(descending=True).tolist()
    assert [r.score for r in by_image] == pytest.approx(sorted(scores[1].tolist(), reverse=True))
    by_text = found.rank(TEXTS[2], images)
    assert [r.candidate for r in by_text] == scores[:, 2].argsort(descending=True).tolist()


def test_threads_that_ask_at_once_get_what_each_would_get_alone():
    found = trained(retriever(strength=1.0))
    images = pictures(3)

    def ask(k):
        if k % 2:
            return found.score(images, TEXTS)
        return found.score(images[:1], TEXTS, weighting="pairwise")

    expected = [ask(0), ask(1)]
    with ThreadPoolExecutor(4) as pool:
        for k, got in enumerate(pool.map(ask, range(12))):
            assert torch.equal(got, expected[k % 2])


def test_two_stages_over_everything_rank_as_pairwise_scores_do():
    found = retriever(strength=1.0, weighting="two-stage", top=50)
    images = pictures(5)
    pairwise = found.score(images, TEXTS, weighting="pairwise")
    rows, columns = found.directed_scores(images, TEXTS)
    torch.testing.assert_close(rows, pairwise, atol=1e-5, rtol=0)
    torch.testing.assert_close(columns, pairwise.T, atol=1e-5, rtol=0)
    few = retriever(strength=1.0, weighting="two-stage", top=2).rank(images[0], TEXTS)
    first = found.score(images[:1], TEXTS)[0].topk(2).indices.tolist()
    assert {r.candidate for r in few[:2]} == set(first)


def test_calibrated_probabilities_need_a_calibration():
    found = retriever(calibration=(40.0, -10.0))
    assert found.probability(torch.tensor([0.25, 0.3])).tolist() == pytest.approx([0.5, 1 / (1 + np.exp(-2))])
    with pytest.raises(UnsupportedCallError, match="was not calibrated"):
        retriever().probability(torch.tensor(0.3))


def test_a_saved_retriever_loads_to_the_same_bits_with_its_calibration_and_so_does_peft_alone(tmp_path):
    found = trained(retriever(strength=0.7, calibration=(40.0, -10.0), configuration="dual-prompt"))
    found.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "guard_dual_prompt.json"} <= files
    again = adapters.load(tmp_path, model=tiny_clip.clip(), inputs=INPUTS)
    assert isinstance(again, DualPromptRetriever)
    assert again.card == found.card
    for weighting in ("none", "pairwise"):
        expected = found.score(pictures(2), TEXTS, weighting=weighting)
        assert torch.equal(again.score(pictures(2), TEXTS, weighting=weighting), expected)
    assert not any(p.requires_grad for p in again.model.parameters())
    alone = PeftModel.from_pretrained(tiny_clip.clip(), tmp_path).eval()
    inputs = found.text_inputs(TEXTS)
    said = alone.get_text_features(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).pooler_output
    assert torch.equal(normalize(said, dim=-1), found.text_features(TEXTS))
    on = DualPromptRetriever.from_pretrained(tmp_path, model=tiny_clip.clip(), inputs=INPUTS, trainable=True)
    assert {n for n, p in on.model.named_parameters() if p.requires_grad} == {
        n for n, p in found.model.named_parameters() if p.requires_grad
    }


def test_an_untuned_retriever_saved_over_a_trained_one_loads_as_plain_clip(tmp_path):
    trained(retriever()).save_pretrained(tmp_path)
    plain = retriever(prompted=False, strength=0.0)
    plain.save_pretrained(tmp_path)
    again = adapters.load(tmp_path, model=tiny_clip.clip(), inputs=INPUTS)
    assert again.config is None
    assert torch.equal(again.score(pictures(2), TEXTS), plain.score(pictures(2), TEXTS))


@pytest.mark.slow
def test_a_folder_and_its_backbone_load_by_name_in_a_new_process(tmp_path):
    tiny_clip.clip().save_pretrained(tmp_path / "clip")
    TOKENIZER.save_pretrained(tmp_path / "clip")
    PROCESSOR.save_pretrained(tmp_path / "clip")
    clip = type(tiny_clip.clip()).from_pretrained(tmp_path / "clip").eval()
    found = trained(retriever(clip=clip))
    found.save_pretrained(tmp_path / "adapter")
    torch.save(found.score(pictures(2), TEXTS, weighting="pairwise"), tmp_path / "expected.pt")
    pictures(2)[0].save(tmp_path / "0.png")
    pictures(2)[1].save(tmp_path / "1.png")
    script = (
        "import sys, torch; from PIL import Image; import lvlm_guard.adapters as a; "
        "at, texts = sys.argv[1], sys.argv[3:]; "
        "torch.set_num_threads(int(sys.argv[2])); r = a.load(at + '/adapter'); "
        "images = [Image.open(f'{at}/{i}.png') for i in (0, 1)]; got = r.score(images, texts, weighting='pairwise'); "
        "sys.exit(0 if torch.equal(got, torch.load(at + '/expected.pt')) else 3)"
    )
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), threads, *TEXTS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_bare_prompt_adapter_and_a_lora_load_as_peft_models(tmp_path):
    clip = tiny_clip.clip()
    clip.save_pretrained(tmp_path / "clip")
    for name, config in (("prompts", coop(TOKENIZER)), ("lora", LoraConfig(target_modules=["q_proj"], r=2))):
        named = type(clip).from_pretrained(tmp_path / "clip")
        get_peft_model(named, config).save_pretrained(tmp_path / name)
        loaded = adapters.load(tmp_path / name)
        assert type(loaded.get_base_model()).__name__ == "CLIPModel"
        assert loaded.peft_config["default"].peft_type == config.peft_type


def test_folders_that_are_incomplete_or_of_another_clip_are_refused(tmp_path):
    retriever().save_pretrained(tmp_path)
    options = {"inputs": INPUTS}
    wide = tiny_clip.clip(hidden_size=48)
    with pytest.raises(UnsupportedModelError, match=r"text tokens of width 24.*has 32 and 48"):
        adapters.load(tmp_path, model=wide, **options)
    with pytest.raises(WeightsError, match="made in memory"):
        adapters.load(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"adapter_model\.safetensors is missing"):
        adapters.load(tmp_path, model=tiny_clip.clip(), **options)
    card = json.loads((tmp_path / "guard_dual_prompt.json").read_text())
    (tmp_path / "guard_dual_prompt.json").write_text(json.dumps(card | {"strenght": 1}))
    with pytest.raises(WeightsError, match=r"unknown fields \['strenght'\]"):
        adapters.load(tmp_path, model=tiny_clip.clip(), **options)
    (tmp_path / "guard_dual_prompt.json").write_text("{")
    with pytest.raises(WeightsError, match="is damaged"):
        adapters.load(tmp_path, model=tiny_clip.clip(), **options)
    with pytest.raises(WeightsError, match="is no adapter folder"):
        adapters.load(tmp_path / "nowhere")


def test_what_can_not_be_retrieved_with_is_refused():
    found = retriever()
    with pytest.raises(TextError, match="is empty"):
        found.score(pictures(1), [""])
    with pytest.raises(TextError, match="word pieces"):
        found.score(pictures(1), ["dog " * 30])
    with pytest.raises(KnobError, match="at least one picture"):
        found.score([], ["dog"])
    with pytest.raises(KnobError, match="weighting is 'two-stage'"):
        found.score(pictures(1), ["dog"], weighting="two-stage")
    with pytest.raises(KnobError, match="strength is -1"):
        retriever(strength=-1)
    lora = get_peft_model(tiny_clip.clip(), LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(KnobError, match="holds one adapter"):
        make(lora, INPUTS, config=coop(TOKENIZER))
    with pytest.raises(UnsupportedModelError, match="is no CLIPModel"):
        make(tiny_clip.clip().text_model, INPUTS)


def test_long_captions_are_cut_where_the_card_says_so():
    found = retriever(too_long="truncate")
    assert found.score(pictures(1), ["dog " * 30]).shape == (1, 1)
