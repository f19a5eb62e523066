"""Answers on disk: nothing that was written is lost or read half."""

import pytest

from lvlm_guard.adapters.distill.lessons import Answer, AnswerFile, Lesson, summary
from lvlm_guard.adapters.errors import TrainingError

ANSWER = Answer("is there a dog?", "dog", 0.25, [5, 2], "Yes, a “dog”.", [0], [0], [([5, 6], [0.9, 0.1])])
LESSONS = [Lesson("a/1.jpg", [ANSWER]), Lesson("b.png", failed="b.png is damaged")]


def test_lessons_come_back_as_they_were_written(tmp_path):
    file = AnswerFile(tmp_path, "train")
    file.add(LESSONS[:1])
    file.add(LESSONS[1:])
    found = list(AnswerFile(tmp_path, "train").lessons())
    assert found[0].answers[0].soft == [[[5, 6], [0.9, 0.1]]]
    assert [lesson.picture for lesson in found] == ["a/1.jpg", "b.png"]
    assert found[1].failed == "b.png is damaged"
    assert found[0].answers[0].text == ANSWER.text
    assert found[0].answers[0].yes


def test_a_line_that_a_killed_process_left_unfinished_is_dropped_and_the_next_one_is_whole(tmp_path):
    AnswerFile(tmp_path, "train").add(LESSONS)
    path = tmp_path / "train-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    file = AnswerFile(tmp_path, "train")
    assert [lesson.picture for lesson in file.lessons()] == ["a/1.jpg"]
    file.add(LESSONS[1:])
    assert path.read_bytes() == whole


def test_answers_of_several_processes_are_read_together_and_parts_apart(tmp_path):
    for process, lesson in enumerate(LESSONS):
        AnswerFile(tmp_path, "train", process).add([lesson])
    AnswerFile(tmp_path, "held-out").add(LESSONS)
    assert {lesson.picture for lesson in AnswerFile(tmp_path, "train", 7).lessons()} == {"a/1.jpg", "b.png"}
    assert len(list(AnswerFile(tmp_path, "held-out").lessons())) == 2


@pytest.mark.parametrize("line", ["{}", "[]", '{"picture": "x", "answers": [{}], "failed": null}', "no json"])
def test_a_line_that_was_changed_is_named(tmp_path, line):
    AnswerFile(tmp_path, "train").add(LESSONS)
    with (tmp_path / "train-0.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(TrainingError, match="Line 3"):
        list(AnswerFile(tmp_path, "train").lessons())


def test_a_summary_counts_what_the_guard_did():
    told = summary(iter([*LESSONS, Lesson("c", [Answer("describe", None, None, [1, 2, 3], "Yes", [], [], [])])]))
    assert told == {
        "pictures": 2, "failed": 1, "answers": 2, "yes": 1, "open": 1, "changed": 1, "tokens": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "yes"), [("yes", True), ("Yes, two.", True), ("no", False), ("Yesterday", False), ("", False)]
)
def test_an_answer_is_yes_by_its_first_word(text, yes):
    assert Answer("p", "dog", None, [], text, [], [], []).yes is yes
