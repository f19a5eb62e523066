"""What the teacher is asked, what it says, and what is kept of it."""

from dataclasses import replace

import pytest
import torch

from lvlm_guard.adapters.distill.lessons import QUESTION, AnswerFile, Lessons, pictures_of
from lvlm_guard.adapters.distill.teacher import CLAIM, Teacher, filled, method_of
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.errors import ImageError, KnobError, UnknownNameError
from lvlm_guard.pretrained import ask


def quiet(_):
    pass


@pytest.fixture(scope="module")
def said(teacher, world, tmp_path_factory):
    file = AnswerFile(tmp_path_factory.mktemp("answers"), "train")
    teacher.answer(world, world.learnt, file, quiet)
    return list(file.lessons())


def generated(teacher, world, lesson, answer, **how):
    inputs = ask(teacher.processor, [[world.load(lesson.picture)]], [answer.prompt])
    options = {"max_new_tokens": 40, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    out = teacher.model.generate(**inputs, **options, **how)
    return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), out


def test_what_is_kept_is_what_guarded_generate_says_one_prompt_at_a_time(teacher, world, said):
    for lesson in said:
        for answer in lesson.answers[:4]:
            tokens, out = generated(teacher, world, lesson, answer)
            assert answer.tokens == tokens
            steps = out.guard.steps[0]
            assert answer.open == [t for t, step in enumerate(steps) if not step.decided]
            assert answer.changed == [t for t, step in enumerate(steps) if step.overruled is not None]


def test_where_the_guard_changed_nothing_the_plain_model_says_the_same(teacher, world, said):
    kept = [(lesson, answer) for lesson in said for answer in lesson.answers]
    assert {bool(answer.changed) for _, answer in kept} == {False, True}
    for lesson, answer in [pair for pair in kept if not pair[1].changed][:10]:
        assert generated(teacher, world, lesson, answer, guard=False)[0] == answer.tokens
    for lesson, answer in [pair for pair in kept if pair[1].changed][:5]:
        plain = generated(teacher, world, lesson, answer, guard=False)[0]
        first = answer.changed[0]
        assert plain[:first] == answer.tokens[:first]
        assert plain[first] != answer.tokens[first]


def test_soft_targets_are_the_guards_distribution_at_the_steps_where_it_had_a_choice(teacher, world, said):
    seen = 0
    for lesson in said:
        for answer in lesson.answers[:3]:
            assert len(answer.soft) == len(answer.open)
            _, out = generated(teacher, world, lesson, answer)
            for t, (ids, p) in zip(answer.open, answer.soft, strict=True):
                expected = out.logits[t][0].softmax(-1)
                assert ids[0] == answer.tokens[t]
                assert p == pytest.approx(expected[ids].tolist(), abs=2e-5)
                assert sum(p) > 0.99
                seen += 1
    assert seen > 5


def test_each_picture_is_asked_one_free_prompt_and_its_objects_each_once(said, lessons):
    for lesson in said:
        assert [answer.object for answer in lesson.answers].count(None) == 1
        names = [answer.object for answer in lesson.answers if answer.object]
        assert len(set(names)) == len(names) == lessons.questions
        assert all(a.prompt == filled(lessons.templates[0], a.object) for a in lesson.answers if a.object)
    assert len({tuple(a.object for a in lesson.answers) for lesson in said}) == len(said)


def test_half_of_the_objects_are_those_that_the_matcher_supports_best(teacher, world, said, lessons):
    for lesson in said:
        claims = [filled(CLAIM, name) for name in lessons.names]
        support = dict(zip(lessons.names, teacher.matcher.support(world.load(lesson.picture), claims), strict=True))
        best = sorted(lessons.names, key=lambda name: -support[name])[: lessons.questions // 2]
        asked = {answer.object: answer.support for answer in lesson.answers if answer.object}
        assert set(best) <= asked.keys()
        assert all(p == pytest.approx(float(support[name]), abs=1e-4) for name, p in asked.items())


def test_a_guard_without_a_matcher_teaches_too(world, lessons, tmp_path):
    from lvlm_guard import guard
    from lvlm_guard.pretrained import load_model

    own = replace(lessons, method="vcd", questions=3)
    method = method_of(own)
    file = AnswerFile(tmp_path, "train")
    Teacher(*guard(*load_model(), method), method, own, 8).answer(world, world.learnt[:2], file, quiet)
    answers = [answer for lesson in file.lessons() for answer in lesson.answers]
    assert len(answers) == 2 * 4
    assert all(answer.support is None for answer in answers)


def test_pictures_that_cannot_be_read_are_counted_and_say_why(teacher, world, tmp_path):
    file, done = AnswerFile(tmp_path, "train"), []
    teacher.answer(world, ["0", "bad1", "1"], file, done.append)
    assert [(one.picture, bool(one.answers), one.failed) for one in file.lessons()] == [
        ("0", True, None), ("bad1", False, "bad1 can't be decoded."), ("1", True, None)
    ]  # fmt: skip
    assert sum(done) == 3


def test_or_refused_and_what_was_answered_before_is_kept(teacher, world, lessons, tmp_path):
    strict = Teacher(teacher.model, teacher.processor, teacher.method, replace(lessons, corrupt="refuse"), 16)
    file = AnswerFile(tmp_path, "train")
    with pytest.raises(ImageError, match="bad1"):
        strict.answer(world, ["0", "bad1", "1"], file, quiet)
    assert [one.picture for one in file.lessons()] == ["0"]


def test_prompts_that_are_not_trained_on_are_asked_of_held_out_pictures_when_told(teacher, world, tmp_path):
    file = AnswerFile(tmp_path, "held-out")
    teacher.answer(world, ["4"], file, quiet, other=["the image shows ."])
    (lesson,) = file.lessons()
    assert [answer.prompt for answer in lesson.answers].count("the image shows .") == 1


def test_a_folder_is_split_the_same_way_each_time_and_only_pictures_count(folder):
    lessons = Lessons(images=str(folder), held_out=2)
    first, second = pictures_of(lessons), pictures_of(lessons)
    assert (first.learnt, first.held_out) == (second.learnt, second.held_out)
    everything = {*first.learnt, *first.held_out}
    assert everything == {"0.png", "1.png", "2.png", "3.png", "4.png", "more/5.png"}
    assert not set(first.learnt) & set(first.held_out)
    assert pictures_of(replace(lessons, pictures=1)).learnt == first.learnt[:1]
    assert pictures_of(replace(lessons, seed=1)).held_out != first.held_out
    assert first.load("more/5.png").size == (96, 96)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": "some/model"}, "--images"),
        ({"prompts": ()}, "no prompt"),
        ({"pictures": 0}, "pictures to learn from"),
        ({"held_out": 0}, "held out"),
        ({"questions": 0, "prompts": (QUESTION,)}, "--questions"),
    ],
)
def test_lessons_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(TrainingError, match=says):
        Lessons(**wrong)


@pytest.mark.parametrize("images", ["nowhere", "empty"])
def test_a_folder_without_pictures_is_refused(images, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"no folder|holds 0 pictures"):
        pictures_of(Lessons(images=str(tmp_path / images)))


def test_more_scenes_than_the_world_has_are_refused():
    with pytest.raises(TrainingError, match="training scenes"):
        pictures_of(Lessons(pictures=30_000))


def test_an_unknown_guard_or_knob_is_refused():
    with pytest.raises(UnknownNameError):
        method_of(Lessons(method="votes"))
    with pytest.raises(KnobError):
        method_of(Lessons(knobs={"lamda": 1.0}))


def test_articles_follow_the_object():
    assert filled(QUESTION, "apple") == "Is there an apple in the image?"
    assert filled(QUESTION, "dog") == "Is there a dog in the image?"


def test_the_teacher_leaves_the_random_state_alone(teacher, world, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    teacher.answer(world, ["0"], AnswerFile(tmp_path, "train"), quiet)
    assert torch.equal(torch.get_rng_state(), before)
