"""Asking in blocks: resumable, independent of interruptions, from the public API."""

import json

import pytest
import torch

from lvlm_guard.embedded import MODEL
from lvlm_guard.evals.answers import Answers, Item, Task, ask_all, matcher_answers, prepare
from lvlm_guard.evals.decoders import demo_decoders
from lvlm_guard.evals.demo_tasks import load
from lvlm_guard.evals.world import NOUNS, picture, world_chair, world_pope


@pytest.fixture(scope="module")
def loaded():
    return load(str(MODEL))


@pytest.fixture(scope="module")
def tasks(loaded):
    pope, captions = world_pope(2), world_chair(3)
    decoders = [
        d for d in demo_decoders(loaded.matcher, NOUNS, 2) if d.name in ("greedy", "sample", "agla-sample", "matcher")
    ]
    once = dict.fromkeys((q.picture, q.text) for q in pope.questions)
    asked = [Item(i, picture(pope.scenes, i), text) for i, text in list(once)[:10]]
    shown = [Item(i, picture(captions.scenes, i), captions.prompt) for i in captions.objects]
    return [Task("pope", asked, 1, decoders), Task("chair", shown, 12, [d for d in decoders if d.guard is not None])]


def everything(answers):
    return {
        (d.name, task.name, seed): answers.of(d, task, seed)
        for task in answers.tasks.values()
        for d in task.decoders
        for seed in range(d.seeds)
    }


@pytest.fixture(scope="module")
def whole(loaded, tasks, tmp_path_factory):
    answers = Answers(tmp_path_factory.mktemp("whole"), tasks, batch=4)
    ask_all(loaded, answers)
    return answers


def test_every_item_is_answered_and_written(whole):
    for (_, name, _), texts in everything(whole).items():
        assert len(texts) == len(whole.tasks[name].items)
    assert {text for (_, name, _), texts in everything(whole).items() if name == "pope" for text in texts} <= {
        "yes",
        "no",
    }
    lines = [json.loads(line) for line in (whole.folder / "sample.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (10 + 3)
    assert set(lines[0]) == {"task", "seed", "block", "picture", "question", "answer"}


def test_a_run_that_was_stopped_anywhere_ends_with_the_same_answers(loaded, tasks, whole, tmp_path):
    for stop in (1, 5, 12):
        count = 0

        def interrupt(task, asked, stop=stop):
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ask_all(loaded, Answers(tmp_path / "answers", tasks, batch=4), interrupt)
    # killed in the middle of writing a line
    path = tmp_path / "answers" / "sample.jsonl"
    path.write_text(path.read_text()[:-30])
    resumed = Answers(tmp_path / "answers", tasks, batch=4)
    ask_all(loaded, resumed)
    assert everything(resumed) == everything(whole)
    # and what is on disk is what is held
    assert everything(Answers(tmp_path / "answers", tasks, batch=4)) == everything(whole)


def test_answers_of_other_questions_are_not_taken_over(tasks, whole, tmp_path):
    for file in whole.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    other = [Task("pope", tasks[0].items[::-1], 1, tasks[0].decoders)]
    assert all(not texts for texts in everything(Answers(tmp_path, other, batch=4)).values())
    assert all(not texts for texts in everything(Answers(tmp_path, tasks, batch=4, keep=False)).values())


def test_asking_leaves_the_random_state_alone_and_seeds_differ(loaded, tasks, whole):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert len(prepare(loaded.processor, tasks[1].items[:2])["input_ids"]) == 2
    demo_answers = Answers(whole.folder, tasks, batch=4)
    ask_all(loaded, demo_answers)
    assert torch.equal(torch.rand(3), expected)
    found = everything(whole)
    assert found["sample", "chair", 0] != found["sample", "chair", 1]


def test_greedy_answers_are_those_of_plain_generate_one_by_one(loaded, tasks, whole):
    model, processor = loaded.model, loaded.processor
    for item, said in zip(tasks[1].items, everything(whole)["greedy", "chair", 0], strict=True):
        inputs = prepare(processor, [item])
        del inputs["guard_views"]
        tokens = model.generate(**inputs, guard=False, max_new_tokens=12, do_sample=False)
        assert processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == said


def test_the_matcher_answers_by_its_support(loaded, tasks):
    matcher = loaded.matcher
    items = tasks[0].items[:4]
    single = [float(matcher.support(item.image, [item.text])[0]) > 0.5 for item in items]
    assert [text == "yes" for text in matcher_answers(matcher, items)] == single
