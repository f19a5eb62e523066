"""Pieces beside plain tables: what each is at its start, and what it is of."""

from __future__ import annotations

import pytest
import tiny_clip
import torch
from peft import get_peft_model
from torch.nn.functional import normalize

from lvlm_guard.adapters.backbone import masked, salient
from lvlm_guard.adapters.prompts import DualPromptConfig, configuration
from lvlm_guard.adapters.prompts.heads import FeatureHead, routed
from lvlm_guard.adapters.prompts.layer import PromptLayer
from lvlm_guard.adapters.prompts.producers import (
    PRODUCERS,
    Clusters,
    Conditioned,
    Style,
    Summaries,
    k_means,
)
from lvlm_guard.errors import KnobError

TOKENIZER = tiny_clip.tokenizer()


def prompted(name="coop", **options):
    torch.manual_seed(0)
    return get_peft_model(tiny_clip.clip(), configuration(name, TOKENIZER, **options)).eval()


def said(model, words="red dog"):
    config = model.peft_config["default"]
    ids = [TOKENIZER.bos_token_id, *config.placeholder_ids, *TOKENIZER(words, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        return model.get_text_features(input_ids=torch.tensor([[*ids, TOKENIZER.eos_token_id]])).pooler_output


def seen(model, pixels=None):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) if pixels is None else pixels
    with torch.no_grad():
        return model.get_image_features(pixel_values=pixels).pooler_output


@pytest.mark.parametrize(
    ("name", "options", "same"),
    [
        ("coop", {"producer": "recurrent"}, {}),
        ("coop", {"producer": "experts", "experts": 1}, {}),
        ("coop", {"producer": "conditioned"}, {}),
        ("coop", {"head": {"guided": 1}}, {}),
        ("independent", {"depth": 2, "producer": "gated"}, {"depth": 2}),
        ("independent", {"depth": 2, "producer": "joint"}, {"depth": 2}),
        ("vpt", {"depth": 2, "producer": "style"}, {"depth": 2}),
        ("vpt", {"depth": 2, "producer": "clusters", "experts": 3}, {"depth": 2}),
    ],
)
def test_a_producer_starts_as_the_tables_alone(name, options, same):
    one, other = prompted(name, **options), prompted(name, **same)
    tables = {key: value for key, value in one.state_dict().items() if "dual_prompt_ctx" in key}
    other.load_state_dict(tables, strict=False)
    if name != "vpt":
        torch.testing.assert_close(said(one), said(other), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(normalize(seen(one), dim=-1), normalize(seen(other), dim=-1), atol=1e-5, rtol=1e-4)


def test_a_router_has_the_specified_weights():
    weights = routed(torch.tensor([0.30, 0.28, 0.10, 0.29]), 2)
    torch.testing.assert_close(weights, torch.tensor([0.7310590, 0, 0, 0.2689411]), atol=1e-6, rtol=0)


def test_the_cosine_of_an_ensemble_is_the_mean_of_its_experts_cosines_and_a_routers_the_weighted_mean():
    torch.manual_seed(0)
    f, t = normalize(torch.randn(3, 8), dim=-1), normalize(torch.randn(4 * 5, 8), dim=-1)
    each = t.view(4, 5, 8)
    for top, weigh in ((0, lambda keys: torch.full((3, 4), 0.25)), (2, lambda keys: routed(f @ keys.T, 2))):
        more = {"head": {"top": top}} if top else {}
        config = configuration("coop", TOKENIZER, producer="experts", experts=4, **more)
        text, image = FeatureHead(config, "text", 8), FeatureHead(config, "vision", 8)
        a, b = image(f, None), text(t, None)
        torch.testing.assert_close(a.norm(dim=-1), torch.ones(3))
        torch.testing.assert_close(b.norm(dim=-1), torch.ones(5))
        keys = normalize(image.keys, dim=-1) if top else None
        expected = torch.einsum("ne,nd,emd->nm", weigh(keys), f, each)
        torch.testing.assert_close(a @ b.T / image.gain, expected, atol=1e-5, rtol=0)


def test_feature_adapters_and_the_frozen_residual_are_what_they_say():
    plain = tiny_clip.clip()
    for head in ({"residual": 1e6}, {}):
        model = prompted("coop", init="normal", head=head)
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        hand = torch.tensor(
            [
                [
                    TOKENIZER.bos_token_id,
                    *model.peft_config["default"].placeholder_ids,
                    *TOKENIZER("red dog", add_special_tokens=False)["input_ids"],
                    TOKENIZER.eos_token_id,
                ]
            ]
        )
        with torch.no_grad():
            frozen = plain.get_text_features(input_ids=hand).pooler_output
        near = torch.cosine_similarity(said(model), frozen).item()
        assert (near > 1 - 1e-6) is bool(head)
        assert (
            torch.cosine_similarity(seen(model), plain.get_image_features(pixel_values=pixels).pooler_output).min()
            > 0.999999
        )
    config = configuration("coop", TOKENIZER, head={"image": 0.1})
    head, f = FeatureHead(config, "vision", 8), torch.randn(2, 8)
    torch.testing.assert_close(head(f, None), 0.9 * f + 0.1 * head.mlp(f))


def test_approximate_attention_lengthens_no_sequence_and_starts_as_clip():
    model = prompted("approximate", depth=2)
    ids = torch.tensor(
        [[TOKENIZER.bos_token_id, *TOKENIZER("red dog", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]]
    )
    plain = tiny_clip.clip()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(said(model), plain.get_text_features(input_ids=ids).pooler_output)
    states = model.get_base_model().vision_model(pixel_values=pixels).last_hidden_state
    assert states.shape == plain.vision_model(pixel_values=pixels).last_hidden_state.shape


def test_decoupled_attention_multiplies_what_patches_and_prompts_say_to_each_other():
    model = prompted("vpt", depth=1, attention="decoupled", eta=0.5)
    model.get_base_model().set_attn_implementation("eager")
    plain = prompted("vpt", depth=1)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "dual_prompt" in k}, strict=False)
    plain.get_base_model().set_attn_implementation("eager")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    one, other = (
        m.get_base_model().vision_model(pixel_values=pixels, output_attentions=True).attentions[0]
        for m in (model, plain)
    )
    prompt = torch.arange(one.shape[-1]) >= one.shape[-1] - 4
    scaled = torch.where(prompt[:, None] ^ prompt[None], other * 1.5, other)
    torch.testing.assert_close(one, scaled / scaled.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_attributes_stand_between_prompts_as_their_own_words():
    config = configuration("attributes", TOKENIZER, names=("red", "small"))
    model = get_peft_model(tiny_clip.clip(), config)
    layer = next(m for m in model.modules() if isinstance(m, PromptLayer))
    h = torch.randn(2, 14, 24)
    filled = layer._filled(h, "default")
    kept = [k for k in range(14) if torch.equal(filled[:, k], h[:, k])]
    assert kept == [0, 3, 6, *range(9, 14)]
    assert TOKENIZER.decode([config.placeholder_ids[k] for k in config.fixed]) == "red small"
    torch.testing.assert_close(
        said(model), said(prompted("coop", n_ctx=8, placeholder_ids=config.placeholder_ids)), atol=1e-5, rtol=1e-5
    )


def test_style_slots_are_equal_for_pictures_whose_patches_have_one_mean_and_spread():
    config = configuration("vpt", TOKENIZER, depth=1, producer="style")
    style = Style(config, {"text": 24, "vision": 32, "joint": 16})
    torch.nn.init.normal_(style.read.weight)
    h = torch.randn(1, 16, 32)
    shuffled = h[:, torch.randperm(16)]
    torch.testing.assert_close(style.shift("vision", h), style.shift("vision", shuffled))
    assert style.shift("text", h) is None


def test_a_picture_has_the_prompts_of_its_nearest_centre():
    config = configuration("vpt", TOKENIZER, depth=1, producer="clusters", experts=2)
    clusters = Clusters(config, {"text": 24, "vision": 32, "joint": 2})
    clusters.centres = torch.eye(2)
    torch.nn.init.normal_(clusters.own)
    made = clusters({"vision": torch.zeros(1, 1, 4, 32)}, lambda: torch.tensor([[0.1, 0.9], [1.0, 0]]))
    assert torch.equal(made["vision"], clusters.own[[1, 0]])
    centres = k_means(torch.cat([torch.randn(20, 2) * 0.01 + torch.eye(2)[k] for k in range(2)]), 2, seed=1)
    torch.testing.assert_close(centres.sort(0).values, torch.tensor([[0.0, 0], [1, 1]]), atol=0.02, rtol=0)


def test_a_picture_moves_the_prompts_of_two_texts_differently_and_by_what_its_formula_says():
    config = configuration("coop", TOKENIZER, producer="conditioned", experts=2)
    made = Conditioned(config, {"text": 24, "vision": 32, "joint": 16})
    torch.nn.init.normal_(made.make.weight)
    made.centres, said = normalize(torch.randn(2, 16), dim=-1), normalize(torch.randn(3, 16), dim=-1)
    tables = torch.randn(1, 1, 4, 24)
    moved = (made({"text": tables}, lambda: said)["text"] - tables)[:, 0, 0].view(2, 3, 24)
    hidden = (made.read.weight @ torch.cat([made.centres[1], said[2]]) + made.read.bias).relu()
    torch.testing.assert_close(moved[1, 2], made.make.weight @ hidden, atol=1e-5, rtol=1e-4)
    assert (moved[1, 2] - moved[1, 0]).abs().max() > 0.01  # CoCoOp's shift is one for all classes
    assert (moved[1, 2] - moved[0, 2]).abs().max() > 0.01


def test_guided_features_gather_the_patches_that_are_most_like_the_guide():
    config = configuration("vpt", TOKENIZER, head={"guided": 1})
    head, f = FeatureHead(config, "vision", 8), torch.randn(2, 8)
    head.guide = normalize(torch.randn(8), dim=0)
    tokens = torch.randn(2, 1 + 5 + 4, 8)
    assert torch.equal(head(f, None, lambda: tokens), normalize(f, dim=-1))
    head.gamma.data.fill_(0.5)
    patches = normalize(tokens[1, 1:6], dim=-1)
    gathered = (patches @ head.guide * 8**0.5).softmax(0) @ patches
    torch.testing.assert_close(head(f, None, lambda: tokens)[1], normalize(f[1], dim=0) + 0.5 * gathered)


def test_scores_of_classes_stand_behind_a_pictures_feature_and_leave_its_cosines_up_to_the_gain():
    config = configuration("vpt", TOKENIZER, n_ctx=3, head={"classes": 1})
    image, text = (FeatureHead(config, side, 8) for side in ("vision", "text"))
    f, t, tokens = torch.randn(2, 8), torch.randn(5, 8), torch.randn(2, 1 + 4 + 3, 8)
    a, b = normalize(image(f, None, lambda: tokens), dim=-1), normalize(text(t, None), dim=-1)
    torch.testing.assert_close(a @ b.T / image.gain, normalize(f, dim=-1) @ normalize(t, dim=-1).T)
    logits = image.score(tokens[:, -3:])[..., 0]
    torch.testing.assert_close(a[:, 8:11] / image.gain, (0.01 * logits).tanh())


def test_pathways_summarise_the_patches_and_tell_one_another_nothing():
    config = configuration("vpt", TOKENIZER, depth=2, n_ctx=3, producer="summaries", experts=2)
    made, h = Summaries(config, {"text": 24, "vision": 32, "joint": 16}), torch.randn(4, 16, 32)
    found = made.shift("vision", h)  # the first two rows are the first pathway's
    expected = (made.query[1] @ h[3].T * 32**-0.5).softmax(-1) @ h[3]
    torch.testing.assert_close(found[3], expected)
    torch.testing.assert_close(made.shift("vision", h[:, :1].expand(-1, 16, -1)), h[:, :1].expand(-1, 3, -1))
    model = prompted("vpt", depth=2, n_ctx=3, producer="summaries", experts=2)
    before, pixels = seen(model), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    maker = next(m for m in model.modules() if isinstance(m, Summaries))
    maker.query.data[1] += 1
    maker.own.data[1] += 1
    after = seen(model)
    assert torch.equal(before[:, :16], after[:, :16])
    assert not torch.allclose(before[:, 16:], after[:, 16:])
    # the class token sees slots alone, patches no slot
    model.get_base_model().set_attn_implementation("eager")
    shown = model.get_base_model().vision_model(pixel_values=pixels, output_attentions=True).attentions[1]
    assert shown[:, :, 0, 1:-3].abs().max() == 0
    assert shown[:, :, 1:-3, -3:].abs().max() == 0


def test_patches_see_the_set_of_prompts_that_is_most_like_them_and_one_set_is_plain_prompts():
    plain = prompted("vpt", depth=2, n_ctx=6)
    one = prompted("vpt", depth=2, n_ctx=6, attention="coordinated", eta=1)
    assert torch.equal(seen(one), seen(plain))
    model = prompted("vpt", depth=1, n_ctx=6, attention="coordinated", eta=3)
    model.get_base_model().set_attn_implementation("eager")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    vision = model.get_base_model().vision_model
    h = vision.pre_layrnorm(vision.embeddings(pixels))[:, 1:]
    first = vision(pixel_values=pixels, output_attentions=True).attentions[0].mean(1)[:, :-6, -6:] > 0
    assert bool((first[:, 0] == torch.tensor([True, True, False, False, False, False])).all())
    ctx = next(m for m in model.modules() if isinstance(m, PromptLayer)).dual_prompt_ctx["default"]
    sets = ctx.view(3, 2, 32).mean(1)[1:]
    nearest = torch.cosine_similarity(h[:, :, None], sets, dim=-1).argmax(-1)
    assert 0 < nearest.float().mean() < 1
    assert torch.equal(first[:, 1:], (torch.tensor([9, 9, 0, 0, 1, 1]) == nearest[..., None]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"producer": "lstm"}, "producer is 'lstm'"),
        ({"producer": "joint"}, "coupling='none'"),
        ({"sides": "text", "coupling": "none", "producer": "style"}, "needs sides"),
        ({"experts": 3}, "experts is 3"),
        ({"head": {"images": 0.1}}, "no option 'images'"),
        ({"head": {"image": 2}}, "head image is 2"),
        ({"head": {"top": 2}}, "of which there is one"),
        ({"eta": 0.5}, "eta"),
        ({"attention": "decoupled"}, "eta"),
        ({"sides": "text", "coupling": "none", "attention": "decoupled", "eta": 0.5}, "vision encoder"),
        ({"attention": "approximate", "eta": 4}, "no prompt tokens"),
        ({"attention": "coordinated", "eta": 3}, "equal sets"),
        ({"sides": "text", "coupling": "none", "head": {"classes": 1}}, "outputs of vision prompts"),
        ({"coupling": "none", "producer": "summaries", "head": {"classes": 1}}, "no experts"),
    ],
)
def test_options_of_pieces_that_mean_nothing_are_refused(options, message):
    with pytest.raises(KnobError, match=message):
        DualPromptConfig(**{"placeholder_ids": [1, 2, 3, 4], **options})


def test_patches_that_the_class_token_looks_at_are_those_of_its_own_attention_and_prompts_are_none():
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain = tiny_clip.clip(attention="eager")
    looked = plain.vision_model(pixel_values=pixels, output_attentions=True).attentions[-1]
    torch.testing.assert_close(salient(plain, pixels), looked.mean(1)[:, 0, 1:], atol=1e-6, rtol=1e-5)
    for more in ({}, {"producer": "clusters", "experts": 3}):  # those of clusters ask the untuned tower on the way
        prompts = prompted("vpt", depth=2, **more)
        with prompts.disable_adapter():
            torch.testing.assert_close(salient(prompts.get_base_model(), pixels), salient(plain, pixels))
        tuned = salient(prompts.get_base_model(), pixels)
        assert tuned.shape == (2, 16)
        assert not torch.allclose(tuned, salient(plain, pixels), atol=1e-3)


def test_of_a_masked_picture_the_most_salient_patches_stay_and_a_share_of_one_is_the_picture():
    pixels, salience = torch.ones(1, 3, 32, 32), torch.arange(16.0)[None]
    assert torch.equal(masked(pixels, salience, 1.0), pixels)
    kept = masked(pixels, salience, 0.25)[0, 0].reshape(4, 8, 4, 8).mean((1, 3))
    assert torch.equal(kept, torch.tensor([[0.0] * 4, [0.0] * 4, [0.0] * 4, [1.0] * 4]))


def test_prompts_of_an_earlier_stage_stand_before_those_that_are_learnt_and_do_not_learn():
    first = prompted("independent", depth=2, n_ctx=3)
    second = prompted("independent", depth=2, n_ctx=1, producer="cascade", boosted=3)
    tables = PRODUCERS["cascade"], next(m for m in first.modules() if isinstance(m, PromptLayer)).tied.tables("default")
    cascade = next(module for module in second.modules() if isinstance(module, tables[0]))
    cascade.boost(tables[1])
    made = cascade({"text": torch.ones(1, 2, 1, 24), "vision": torch.ones(1, 2, 1, 32)}, None)
    for side in ("text", "vision"):
        assert torch.equal(made[side][:, :, :3], tables[1][side])
        assert torch.equal(made[side][:, :, 3:], torch.ones_like(made[side][:, :, 3:]))
    assert not [*cascade.parameters()]
    assert second.peft_config["default"].vision_slots == 4
    with pytest.raises(KnobError, match="cascade"):
        configuration("independent", TOKENIZER, boosted=3)
