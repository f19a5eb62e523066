"""What the tuned model changed: agreement with its teacher, and answers that the guard would have left alone."""

import numpy as np
import peft
import pytest
import torch

from lvlm_guard.adapters.distill.drift import Compared, compare, ratio_interval, rows_of
from lvlm_guard.adapters.distill.lessons import AnswerFile
from lvlm_guard.adapters.distill.training import target_modules
from lvlm_guard.pretrained import ask, load_model


def student(**options):
    torch.manual_seed(0)
    model, processor = load_model()
    return peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=target_modules(model, projector=True), **options)
    ).eval(), processor


@pytest.fixture(scope="module")
def said(teacher, world, tmp_path_factory):
    file = AnswerFile(tmp_path_factory.mktemp("answers"), "held-out")
    teacher.answer(world, ["0", "1", "4", "5"], file, lambda _: None)
    return list(file.lessons())


def test_an_adapter_that_has_learnt_nothing_changes_nothing(said, world, lessons):
    found = compare(*student(), lessons, said, world, 16, lambda _: None)
    assert len(found) == sum(len(lesson.answers) for lesson in said)
    assert [one.tuned for one in found] == [one.plain for one in found]
    assert all(one.plain for one in found if one.untouched)
    assert not all(one.plain for one in found)
    assert all(one.kl == 0 for one in found)


@pytest.mark.slow
def test_what_is_compared_is_what_the_models_say_by_themselves(said, world, lessons):
    model, processor = student(init_lora_weights=False, lora_alpha=8)
    done = []
    found = iter(compare(model, processor, lessons, said, world, 16, done.append))
    assert sum(done) == len(said)
    changed = 0
    for lesson in said:
        for answer in lesson.answers:
            one = next(found)
            inputs = ask(processor, [[world.load(lesson.picture)]], [answer.prompt])
            start = inputs["input_ids"].shape[1]
            options = {"max_new_tokens": 40, "do_sample": False}
            tuned = model.generate(**inputs, **options)[0, start:].tolist()
            with model.disable_adapter():
                plain = model.generate(**inputs, **options)[0, start:].tolist()
            assert one.tuned == (tuned == answer.tokens)
            assert one.plain == (plain == answer.tokens)
            assert one.kind == ("caption" if answer.object is None else "question")
            ids = torch.cat([inputs["input_ids"][0], torch.tensor(answer.tokens)])[None]
            whole = {"input_ids": ids, "pixel_values": inputs["pixel_values"], "attention_mask": torch.ones_like(ids)}
            with torch.no_grad():
                q = model(**whole).logits[0, start - 1 : -1].double().log_softmax(-1)
                with model.disable_adapter():
                    p = model(**whole).logits[0, start - 1 : -1].double().log_softmax(-1)
            each = (p.exp() * (p - q)).sum(-1)
            each[answer.open] = 0
            assert one.kl == pytest.approx(float(each.sum()), rel=1e-3, abs=1e-4)
            assert one.decided == len(answer.tokens) - len(answer.open)
            changed += one.untouched and not one.tuned
    assert changed > 0


def compared(picture, kind="question", untouched=False, plain=True, tuned=True, kl=0.0, decided=1):
    return Compared(picture, kind, untouched, plain, tuned, kl, decided)


def test_rows_say_who_agrees_how_often_and_what_changed_where_the_guard_had_no_say():
    one = [
        compared("a", plain=False),
        compared("a", untouched=True, kl=0.2, decided=2),
        compared("b", untouched=True, tuned=False, kl=0.4, decided=4),
        compared("b", kind="caption", plain=False, tuned=False, decided=9),
    ]
    other = [*one[:2], compared("b", untouched=True, kl=0.0, decided=4), one[3]]
    rows = {(row["method"], row["task"], row["metric"]): row for row in rows_of("m", "vote", [one, other])}
    assert rows["greedy", "held_out_question", "agreement"]["value"] == pytest.approx(2 / 3)
    assert rows["distilled", "held_out_question", "agreement"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert rows["distilled", "held_out_question", "agreement"]["n"] == 3
    assert rows["distilled", "held_out_caption", "agreement"]["value"] == 0
    assert rows["distilled", "untouched_question", "changed"]["value"] == pytest.approx((1 / 2 + 0) / 2)
    assert rows["distilled", "untouched_question", "kl"]["value"] == pytest.approx((0.6 + 0.2) / 2 / 6)
    assert not any(task.endswith("other") or task == "untouched_caption" for _, task, _ in rows)


def test_intervals_are_over_pictures_and_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        counts = np.stack([rng.binomial(6, 0.3, 40), np.full(40, 6)], 1).astype(float)
        value, low, high = ratio_interval(counts, seed=trial)
        assert low <= value <= high
        covered += low <= 0.3 <= high
    assert covered / 200 == pytest.approx(0.95, abs=0.05)


def test_one_picture_has_no_interval():
    assert ratio_interval(np.array([[1.0, 4.0]])) == (0.25, None, None)
