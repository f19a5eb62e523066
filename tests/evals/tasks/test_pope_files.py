"""POPE over pictures of one's own: what is asked, once; what is refused, and when; what a validation split may use."""

import json
from collections import Counter
from itertools import groupby

import pytest
from answered import answered
from question_rows import DATA, published, question, written

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.coco import in_val_half, of_published_test
from lvlm_guard.evals.tasks.pope.questions import read_questions, write_questions

KINDS = ("random", "popular", "adversarial")


def of(data_set, kind):
    return str(DATA / "pope" / f"{data_set}_pope_{kind}.json.gz")


def made(pictures, name="pope_coco", questions=None, **settings):
    given = (str(DATA / "pope"),) if questions is None else questions
    (task,) = tasks_of(Settings(tasks=(name,), images=str(pictures), questions=given, **settings))
    return task


@pytest.mark.parametrize(("data_set", "asked"), [("coco", 5127), ("aokvqa", 5146), ("gqa", 5172)])
def test_the_published_questions_are_each_asked_once_and_counted_in_every_kind(pictures, data_set, asked):
    task = made(pictures, f"pope_{data_set}")
    assert len(task.items) == asked  # of 9000
    for kind in KINDS:
        rows = published(data_set, f"{kind}_fixed" if (data_set, kind) == ("coco", "adversarial") else kind)
        told = [(i.picture, i.question, i.truth) for i in task.items if f"pope_{kind}" in i.rows]
        assert Counter(told) == Counter((row["image"], row["text"], row["label"]) for row in rows)
        ids = {i.tags["ids"][f"pope_{kind}"]: i.question for i in task.items if f"pope_{kind}" in i.rows}
        assert ids == {row["question_id"]: row["text"] for row in rows}
    assert len(list(groupby(item.picture for item in task.items))) == 500  # a picture's questions stand together
    assert len({item.key for item in task.items}) == asked
    assert task.about["warnings"] == []
    assert {file["published"].split()[0] for file in task.about["questions"]} == {data_set}


def test_data_sets_of_one_run_are_told_apart(pictures):
    names = ("pope_coco", "pope_gqa")
    tasks = tasks_of(
        Settings(tasks=names, images=str(pictures), questions=(of("coco", "random"), of("gqa", "random")), limit=2)
    )
    assert [task.name for task in tasks] == list(names)
    rows = measured(tasks, lambda item: "yes")
    assert {row["task"] for row in rows} == {"pope_random@pope_coco", "pope_random@pope_gqa"}


def measured(tasks, answer):
    return answered(tasks, greedy=[answer])["rows"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data_set", ["coco", "aokvqa", "gqa"])
def test_answers_to_a_published_file_score_as_the_authors_script_scores_them(pictures, data_set, kind):
    golden = json.loads((DATA / "pope" / "golden_scores.json").read_text())
    task = made(pictures, f"pope_{data_set}", (of(data_set, kind),))
    templates = golden["templates"]

    def answer(item):
        (number,) = item.tags["ids"].values()
        return templates[(7 * number + len(item.question)) % len(templates)]

    rows = measured([task], answer)
    expected = next(entry for name, entry in golden["files"].items() if name.endswith(f"{data_set}_pope_{kind}.json"))
    for metric in ("accuracy", "precision", "recall", "f1"):
        row = find(rows, "greedy", f"pope_{kind}", f"{metric}_official")
        assert row["value"] == pytest.approx(expected["pope"][metric], abs=1e-12)
        assert row["n"] == 3000


def test_the_prompt_is_the_stock_one_or_that_of_the_preset_and_the_matcher_gets_the_bare_question(pictures):
    stock, paper = (made(pictures, limit=1, preset=preset) for preset in ("", "paper-agla"))
    assert stock.items[0].prompt == stock.items[0].question + "\nAnswer the question using a single word or phrase."
    assert paper.items[0].prompt == paper.items[0].question + " Please answer this question with one word."
    assert stock.items[0].question == "Is there a snowboard in the image?"
    assert (stock.max_new_tokens, paper.max_new_tokens) == (128, 1024)
    assert made(pictures, limit=1, preset="paper-agla", model="Salesforce/instructblip-vicuna-7b").max_new_tokens == 256
    assert made(pictures, limit=1, max_new_tokens=7).max_new_tokens == 7


def test_a_folder_with_both_adversarial_copies_gives_the_repaired_one_and_to_the_preset_the_papers(pictures):
    stock, paper = (made(pictures, preset=preset) for preset in ("", "paper-agla"))
    assert sum("imange" in item.question for item in stock.items) == 0
    assert sum("imange" in item.question for item in paper.items) == 57
    alone = made(pictures, questions=(of("coco", "adversarial"),))
    assert "57 questions end in 'imange'" in alone.about["warnings"][0]


def test_a_limit_counts_pictures_and_takes_all_their_questions(pictures):
    whole, few = made(pictures), made(pictures, limit=3)
    assert len({item.picture for item in few.items}) == 3
    assert [i.key for i in few.items] == [i.key for i in whole.items if i.picture in {i.picture for i in few.items}]


def test_keys_do_not_depend_on_which_files_are_asked(pictures):
    whole = {(i.picture, i.question): i.key for i in made(pictures).items}
    for item in made(pictures, questions=(of("coco", "popular"),)).items:
        assert whole[item.picture, item.question] == item.key


def test_pictures_may_lie_in_the_folders_of_the_data_sets(tmp_path, jpeg):
    (tmp_path / "coco" / "val2014").mkdir(parents=True)
    (tmp_path / "coco" / "val2014" / "COCO_val2014_000000310196.jpg").write_bytes(jpeg)
    task = made(tmp_path, limit=1)
    assert task.items[0].images == (tmp_path / "coco" / "val2014" / "COCO_val2014_000000310196.jpg",)
    assert task.items[0].pictures()[0].size == (4, 3)


@pytest.mark.slow
def test_missing_and_broken_pictures_are_counted_and_the_first_is_named(tmp_path, jpeg):
    with pytest.raises(DataError, match=r"500 of 500 pictures of pope_coco .* first is COCO_val2014_000000310196\.jpg"):
        made(tmp_path)
    with pytest.raises(DataError, match=r"2405722\.jpg\. GQA's are in https"):
        made(tmp_path, "pope_gqa")
    with pytest.raises(DataError, match="is no folder"):
        made(tmp_path / "nowhere")
    with pytest.raises(DataError, match="give their folder with --images"):
        made("")
    (tmp_path / "COCO_val2014_000000310196.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"1 of 1 pictures .* empty or no pictures; .*\(16 bytes\)"):
        made(tmp_path, limit=1)


def test_a_missing_picture_is_named_before_any_model_is_loaded(tmp_path):
    settings = Settings(
        model="no/such-model", tasks=("pope_coco",), images=str(tmp_path), questions=(of("coco", "random"),)
    )
    with pytest.raises(DataError, match="500 of 500 pictures of pope_coco are not in"):  # not that there is no model
        ask(settings, tmp_path / "out")
    assert not list((tmp_path / "out").glob("answers/*"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([question(1), {"question_id": 2, "image": "a.jpg", "text": "?", "lable": "no"}], "Line 2 .*Is 'lable' meant"),
        ([{"id": 1, "image": "a.jpg", "text": "?", "label": "no"}], "Line 1 .* has no 'question_id'"),
        ([question(1, label="Yes")], "Line 1 .* label 'Yes'"),
        ([question(1), question(1)], "question_id 1 more than once"),
        ([question(1), question(2, label="no")], "with both labels"),
        ([], "holds no POPE question"),
        (["text"], "Line 1 .* is no POPE question"),
    ],
)
def test_a_wrong_question_file_is_refused_with_its_name_and_line(tmp_path, rows, message):
    path = written(tmp_path / "coco_random.json", rows)
    with pytest.raises(DataError, match=message) as caught:
        made(tmp_path, questions=(path,))
    assert "coco_random.json" in str(caught.value)


def test_files_that_are_no_text_are_missing_or_cut_are_refused(tmp_path):
    for name, content in (("coco_a.json", b"\xff\xfe\x00"), ("coco_b.json.gz", b"\x1f\x8b\x08"), ("coco_c.json", b"{")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            made(tmp_path, questions=(str(tmp_path / name),))
    with pytest.raises(DataError, match=r"nowhere\.json"):
        made(tmp_path, questions=(str(tmp_path / "nowhere.json"),))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no question file"):
        made(tmp_path, questions=(str(tmp_path / "empty"),))


def test_windows_line_ends_and_a_missing_last_one_change_nothing(tmp_path, pictures):
    rows = published("coco", "popular")
    path = written(tmp_path / "mine.json", rows, end="\r\n")
    unix = made(pictures, questions=(of("coco", "popular"),))
    dos = made(pictures, questions=(path,))
    assert dos.digest() == unix.digest()
    assert dos.about["questions"][0]["published"] == "coco popular"


def test_a_changed_question_file_is_asked_with_a_warning(tmp_path, pictures):
    path = written(tmp_path / "coco_pope_random.json", published("coco", "random")[:12])
    task = made(pictures, questions=(path,))
    assert len(task.items) == 12
    assert "none of the published files for coco" in task.about["warnings"][0]


def test_a_file_goes_to_the_task_of_its_data_set_and_never_unasked(tmp_path, pictures):
    with pytest.raises(DataError, match="is of gqa, and no task of this run asks it"):
        made(pictures, questions=(of("gqa", "random"),))
    strange = written(tmp_path / "mine.json", published("coco", "random")[:6])
    settings = Settings(tasks=("pope_coco", "pope_gqa"), images=str(pictures), questions=(strange,))
    with pytest.raises(DataError, match=r"Neither content nor name tells .* coco_mine\.json"):
        tasks_of(settings)
    twice = written(tmp_path / "coco_random_2.json", published("coco", "random")[:6])
    with pytest.raises(DataError, match=r"two files for pope_random: .*coco_random_2\.json"):
        made(pictures, questions=(of("coco", "random"), twice))


def test_own_questions_are_asked_by_the_task_pope(tmp_path, jpeg):
    (tmp_path / "a.jpg").write_bytes(jpeg)
    rows = [question(1, "a.jpg"), question(2, "a.jpg", "Is there an ox in the image?", "no")]
    alone = written(tmp_path / "garden.jsonl", rows)
    assert [item.rows for item in made(tmp_path, "pope", (alone,)).items] == [("pope",)] * 2
    other = written(tmp_path / "street.jsonl", rows[:1])
    task = made(tmp_path, "pope", (alone, other))
    assert [item.rows for item in task.items] == [("pope_garden", "pope_street"), ("pope_garden",)]
    assert task.items[1].tags["object"] == "ox"
    assert task.about["warnings"] == []
    with pytest.raises(DataError, match="give their files with --questions"):
        made(tmp_path, "pope", ())


def test_a_list_of_pictures_to_caption_is_left_to_the_task_chair(tmp_path, pictures):
    listed = written(tmp_path / "agla.jsonl", [{"question_id": 0, "image": "x.jpg", "text": "Describe it."}])
    task = made(pictures, questions=(listed, of("coco", "random")), limit=1)
    assert len(task.items) == 6


def test_published_questions_are_never_used_to_choose_settings(tmp_path, pictures):
    with pytest.raises(DataError, match="not marked for choosing settings: 3000 of 3000"):
        made(pictures, questions=(of("coco", "random"),), split="val")
    for name in ("pope_coco", "pope_gqa"):
        with pytest.raises(DataError, match="settings must not be chosen on them"):
            made(pictures, name, (), split="val")
    marked = tmp_path / "coco_pope_random_val.json"
    write_questions(marked, read_questions(of("coco", "random")), split="val")
    with pytest.raises(DataError, match="500 of its pictures are those of a published test"):
        made(pictures, questions=(str(marked),), split="val")
    with pytest.raises(DataError, match="they are no test"):
        made(pictures, questions=(str(marked),))


def test_own_questions_marked_for_it_choose_settings(tmp_path, jpeg):
    (tmp_path / "a.jpg").write_bytes(jpeg)
    path = written(tmp_path / "own.json", [question(1, "a.jpg", split="val")])
    task = made(tmp_path, "pope", (path,), split="val")
    assert (task.split, len(task.items)) == ("val", 1)
    half = written(tmp_path / "half.json", [question(1, "a.jpg", split="val"), question(2, "a.jpg", "Is it?")])
    with pytest.raises(DataError, match="1 of 2 questions"):
        made(tmp_path, "pope", (half,), split="val")


@pytest.fixture
def instances(tmp_path, jpeg):
    """COCO's instances over 300 pictures, tested ones among them, each with four of eight objects."""
    names = ["person", "dog", "cup", "car", "bus", "cat", "tv", "bird"]
    numbers = [*range(1000, 1290), *(int(row["image"][13:25]) for row in published("coco", "random")[::300])]
    table = {
        "images": [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in numbers],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": n, "category_id": (n + k * k) % 8} for n in numbers for k in range(4)],
    }
    path = tmp_path / "annotations" / "instances_val2014.json"
    path.parent.mkdir()
    path.write_text(json.dumps(table))
    for picture in table["images"]:
        (tmp_path / picture["file_name"]).write_bytes(jpeg)
    held = {p["file_name"]: {names[(p["id"] + k * k) % 8] for k in range(4)} for p in table["images"]}
    return path, held


@pytest.mark.parametrize("given", ["file", "folder", "above"])
def test_val_questions_for_coco_are_built_from_instances_over_pictures_of_no_test(tmp_path, instances, given):
    path, held = instances
    annotations = {"file": path, "folder": path.parent, "above": path.parent.parent}[given]
    task = made(tmp_path, questions=(), split="val", annotations=str(annotations))
    again = made(tmp_path, questions=(), split="val", annotations=str(annotations))
    assert task.digest() == again.digest()
    asked = {item.picture for item in task.items}
    tested = {row["image"] for name in ("coco", "aokvqa") for row in published(name, "random")}
    assert asked
    assert not asked & tested
    assert all(in_val_half(name) and not of_published_test(name) for name in asked)
    for kind in KINDS:
        items = [item for item in task.items if f"pope_{kind}" in item.rows]
        assert len(items) == 6 * len(asked)
        for item in items:
            assert (item.tags["object"] in held[item.picture]) == (item.truth == "yes")
    few = made(tmp_path, questions=(), split="val", annotations=str(annotations), limit=5)
    assert [i.key for i in few.items] == [i.key for i in task.items][: len(few.items)]


def test_annotations_that_are_none_are_refused(tmp_path, instances):
    path, _ = instances
    for content in ("[]", "{}", "nonsense", '{"images": [], "categories": [], "annotations": [{"image_id": 1}]}'):
        path.write_text(content)
        with pytest.raises(DataError, match="instances_val2014"):
            made(tmp_path, questions=(), split="val", annotations=str(path))
    with pytest.raises(DataError, match=r"instances_val2014\.json is not there.*annotations_trainval2014\.zip"):
        made(tmp_path, questions=(), split="val", annotations=str(tmp_path / "nowhere"))


def test_a_test_has_questions_beside_it_to_calibrate_on_over_pictures_of_no_test(tmp_path, instances):
    path, _ = instances
    row = published("coco", "random")[0]
    asked = written(tmp_path / "coco_pope_random.json", [row, *(question(2, row["image"], "Is it?") for _ in range(1))])
    task = made(tmp_path, questions=(asked,), annotations=str(path))
    held = {item.picture for item in task.calibration}
    assert 0 < len(held) <= 80
    assert all(in_val_half(name) and not of_published_test(name) for name in held)
    assert not {item.key for item in task.calibration} & {item.key for item in task.items}
    assert not held & {item.picture for item in task.items}
    plain = made(tmp_path, questions=(asked,))
    assert plain.calibration == ()
    (tmp_path / sorted(held)[0]).unlink()
    lacking = made(tmp_path, questions=(asked,), annotations=str(path))
    assert lacking.calibration == ()
    assert "nothing is calibrated" in lacking.about["warnings"][-1]


def test_repopes_labels_are_no_popes(tmp_path, pictures, monkeypatch):
    path = written(tmp_path / "coco_pope_random.json", published("coco", "random")[:12])
    from lvlm_guard.evals.tasks.pope import questions as files

    monkeypatch.setattr(files, "REPOPE", (files._digest(path),))
    with pytest.raises(DataError, match="is RePOPE's"):
        made(pictures, questions=(path,))


def test_a_line_separator_inside_a_string_breaks_no_file(tmp_path, jpeg):
    (tmp_path / "a.jpg").write_bytes(jpeg)
    rows = [question(1, "a.jpg", "Is there a dog\u2028 in the image?"), question(2, "a.jpg", "Is there a cat?")]
    path = tmp_path / "own.json"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert [item.question for item in made(tmp_path, "pope", (str(path),)).items] == [row["text"] for row in rows]


def test_a_task_that_is_asked_twice_is_refused(pictures):
    settings = Settings(tasks=("pope_coco", "pope_coco"), images=str(pictures), questions=(str(DATA / "pope"),))
    with pytest.raises(DataError, match="stands for pope_coco twice"):
        tasks_of(settings)
