"""The parts of DCAR: captions with room for prompts, word weights, two stages."""

from __future__ import annotations

import threading

import pytest
import tiny_clip
import torch
from peft import get_peft_model
from transformers import BertConfig, BertModel, CLIPTokenizer, PreTrainedTokenizerFast

from lvlm_guard.adapters.prompts import coop, placeholders
from lvlm_guard.adapters.retrieval.model import again, budget, caption_inputs, prepare, raw, scaled, weighing
from lvlm_guard.errors import KnobError, TextError, UnsupportedModelError

TOKENIZER = tiny_clip.tokenizer()
LENGTH = tiny_clip.LENGTH


def test_captions_have_the_slots_after_bos_and_the_mask_marks_their_own_words():
    slots = TOKENIZER("a photo", add_special_tokens=False)["input_ids"]
    got = caption_inputs(TOKENIZER, ["red dog", "a blue cat on the bus"], placeholder_ids=slots, length=LENGTH)
    plain = TOKENIZER(["a photo red dog", "a photo a blue cat on the bus"], padding=True, return_tensors="pt")
    assert torch.equal(got.input_ids, plain["input_ids"])
    assert torch.equal(got.attention_mask, plain["attention_mask"])
    assert got.words.tolist() == [[False] * 3 + [True] * 2 + [False] * 5, [False] * 3 + [True] * 6 + [False]]
    assert got[[1]].input_ids.shape == (1, 10)


def test_a_caption_of_exactly_the_budget_keeps_its_last_word_and_one_more_is_refused():
    most = budget(LENGTH, 4)
    assert budget(77, 4) == 71
    model = get_peft_model(tiny_clip.clip(), coop(TOKENIZER))
    slots = model.peft_config["default"].placeholder_ids
    words = [
        "red",
        "dog",
        "on",
        "a",
        "blue",
        "bus",
        "with",
        "the",
        "small",
        "cat",
        "and",
        "three",
        "large",
        "green",
        "cows",
        "beside",
        "an",
        "apple",
    ][:most]
    assert len(words) == most
    features = []
    for last in ("car", "cup"):
        inputs = caption_inputs(TOKENIZER, [" ".join([*words[:-1], last])], placeholder_ids=slots, length=LENGTH)
        assert inputs.input_ids.shape == (1, LENGTH)
        assert inputs.input_ids[0, -1] == TOKENIZER.eos_token_id
        features.append(model.get_text_features(input_ids=inputs.input_ids).pooler_output)
    assert not torch.allclose(*features, atol=1e-4)
    long = " ".join([*words, "car"])
    with pytest.raises(TextError, match=rf"has {most + 1} word pieces, but {most} is the most.*4 prompts take 6"):
        caption_inputs(TOKENIZER, [long], placeholder_ids=slots, length=LENGTH)
    cut = caption_inputs(TOKENIZER, [long], placeholder_ids=slots, length=LENGTH, too_long="truncate")
    assert cut.input_ids.shape == (1, LENGTH)
    assert cut.input_ids[0, -1] == TOKENIZER.eos_token_id


def test_a_clip_of_the_old_kind_which_ends_texts_at_the_highest_id_reads_the_same_features():
    slots = TOKENIZER("a photo of a", add_special_tokens=False)["input_ids"]
    inputs = caption_inputs(TOKENIZER, ["red dog", "a blue cat on the bus"], placeholder_ids=slots, length=LENGTH)
    new, old = (
        get_peft_model(tiny_clip.clip(**changed), coop(TOKENIZER)).get_text_features(input_ids=inputs.input_ids)
        for changed in ({}, {"eos_token_id": 2})
    )
    assert torch.equal(new.pooler_output, old.pooler_output)


def test_clips_own_tokenizer_of_pieces_gives_what_it_gives_itself_and_its_unknown_token_is_no_placeholder():
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    pieces = [*letters, "do", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
    own = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("d", "o"), ("do", "g</w>")])
    got = caption_inputs(own, ["a dog", "a zebra dog"], length=77)
    plain = own(["a dog", "a zebra dog"], padding=True, return_tensors="pt")
    assert torch.equal(got.input_ids, plain["input_ids"])
    assert torch.equal(got.attention_mask, plain["attention_mask"])
    assert got.words.sum(1).tolist() == [2, 7]
    assert placeholders(own, 2, "a dog") == own("a dog", add_special_tokens=False)["input_ids"]
    with pytest.raises(KnobError, match="does not know all of the words"):
        placeholders(own, 2, "a 9")


def test_captions_that_say_nothing_are_refused():
    for texts in (["dog", ""], [" "]):
        with pytest.raises(TextError, match="is empty"):
            caption_inputs(TOKENIZER, texts)
    for texts in ([], "dog"):
        with pytest.raises(KnobError, match="list of captions"):
            caption_inputs(TOKENIZER, texts)
    with pytest.raises(KnobError, match="too_long is 'cut'"):
        caption_inputs(TOKENIZER, ["dog"], too_long="cut")


def test_a_tokenizer_without_begin_and_end_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, unk_token="<unk>")
    with pytest.raises(UnsupportedModelError, match="no begin or no end token"):
        caption_inputs(bare, ["dog"])


def test_word_weights_give_the_specified_values():
    w = raw(torch.tensor([0.20, 0.21, 0.19]), torch.tensor([0.22, 0.31, 0.18]))
    torch.testing.assert_close(w, torch.tensor([0.02, 0.10, 0.01]), atol=1e-7, rtol=0)
    factors = scaled(w, 0.5)
    torch.testing.assert_close(factors, torch.tensor([0.7307692, 1.6538460, 0.6153846]), atol=1e-5, rtol=0)


def test_factors_are_bounded_and_one_on_what_is_no_word_or_where_nothing_differs():
    words = torch.tensor([False, True, True, False])
    assert scaled(torch.tensor([9.0, 0.02, 0.1, 9.0]), 0.5, words).tolist()[::3] == [1, 1]
    torch.testing.assert_close(
        scaled(torch.tensor([9.0, 0.02, 0.1, 9.0]), 0.5, words)[1:3], scaled(torch.tensor([0.02, 0.1]), 0.5)
    )
    assert scaled(torch.tensor([0.0, 0.0]), 0.5).tolist() == [1, 1]
    assert scaled(torch.tensor([0.1, 0.3]), 0.0).tolist() == [1, 1]
    assert scaled(torch.tensor([1.0, *[0.0] * 9]), 5.0).tolist() == [4, *[0.25] * 9]
    assert scaled(torch.zeros(2, 3), 0.5, torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[1] * 3] * 2


def test_weighing_multiplies_word_embeddings_before_positions_and_leaves_no_trace():
    clip = tiny_clip.clip()
    ids = TOKENIZER(["red dog"], return_tensors="pt")["input_ids"]
    before = clip.text_model.embeddings(ids)
    prepare(clip)
    prepare(clip)
    factors = torch.tensor([[1.0, 2.0, 0.5, 1.0]])
    with weighing(factors):
        got = clip.text_model.embeddings(ids)
    table = clip.text_model.embeddings
    expected = table.token_embedding.weight[ids] * factors[..., None] + table.position_embedding.weight[:4]
    torch.testing.assert_close(got, expected)
    assert torch.equal(clip.text_model.embeddings(ids), before)
    with weighing(torch.ones(1, 4)):
        assert torch.equal(clip.text_model.embeddings(ids), before)


def test_weighing_in_one_thread_changes_nothing_in_another():
    clip = tiny_clip.clip()
    prepare(clip)
    ids = TOKENIZER(["red dog"], return_tensors="pt")["input_ids"]
    plain, seen = clip.text_model.embeddings(ids), []
    with weighing(torch.full((1, 4), 3.0)):
        other = threading.Thread(target=lambda: seen.append(clip.text_model.embeddings(ids)))
        other.start()
        other.join()
    assert torch.equal(seen[0], plain)


def test_a_model_without_clips_text_encoder_can_not_be_weighed():
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    with pytest.raises(UnsupportedModelError, match=r"no text_model\.embeddings"):
        prepare(bert)


def test_two_stages_rank_the_best_again_and_keep_the_rest_below_in_their_order():
    first = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]])
    second = torch.tensor([[0.1, 0.9, 0.5, 9.9, 9.9], [9.9, 9.9, -0.3, -0.2, -0.1]])
    asked = []

    def pair(rows, columns):
        asked.extend(zip(rows.tolist(), columns.tolist(), strict=True))
        return second[rows, columns]

    got = again(first, pair, 3)
    assert sorted(asked) == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (1, 4)]
    assert got.argsort(1, descending=True).tolist() == [[1, 2, 0, 4, 3], [4, 3, 2, 1, 0]]
    assert torch.equal(again(first, pair, 99), second)
