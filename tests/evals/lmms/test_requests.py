"""Requests of lmms-eval in both layouts, as items."""

import numpy as np
import pytest
from lmms_eval.api.instance import Instance
from PIL import Image

from lvlm_guard.errors import ImageError, UnsupportedCallError
from lvlm_guard.evals.lmms.requests import read_requests

PICTURE = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
GENERATION = {"max_new_tokens": 5, "until": []}


def instance(arguments, **metadata):
    given = {"task": arguments[4], "doc_id": arguments[3], "repeats": 1} | metadata
    return Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=given)


def chat(say, doc_id=0, generation=GENERATION, task="t", **metadata):
    return instance(("context", say, generation, doc_id, task, "test"), **metadata)


def talk(document):
    content = [{"type": "image", "url": document["image"]}, {"type": "text", "text": document["question"]}]
    return [{"role": "user", "content": content}]


DOCUMENTS = {"t": {"test": [{"image": PICTURE, "question": f"is it {n} ?"} for n in range(3)]}}


def test_both_layouts_are_the_same_item():
    simple = instance(("is it 1 ?", GENERATION, lambda document: [document["image"]], 1, "t", "test"))
    first, second = (one.item() for one in read_requests([chat(talk, 1), simple], DOCUMENTS))
    assert first.conversation() == second.conversation()
    assert first.prompt == "is it 1 ?"
    assert first.key == second.key == "1"
    (part, text) = first.conversation()[0]["content"]
    assert part["image"].mode == "RGB"
    assert text == {"type": "text", "text": "is it 1 ?"}


def test_a_document_is_not_opened_before_it_is_asked():
    requests = read_requests([chat(lambda document: 1 / 0)], DOCUMENTS)
    with pytest.raises(ZeroDivisionError):
        requests[0].item()


def test_pictures_may_be_files(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    documents = {"t": {"test": [{"image": str(tmp_path / "a.png"), "question": "q"}]}}
    (image,) = read_requests([chat(talk)], documents)[0].item().pictures()
    assert np.array_equal(np.asarray(image), np.asarray(PICTURE))
    documents["t"]["test"][0]["image"] = str(tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"b\.png"):
        read_requests([chat(talk)], documents)[0].item()


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_videos_and_sounds_are_refused_by_name(kind):
    def say(document):
        return [{"role": "user", "content": [{"type": kind, "url": "a.mp4"}]}]

    with pytest.raises(UnsupportedCallError, match=f"Document 0 of t has a {kind}"):
        read_requests([chat(say)], DOCUMENTS)[0].item()


def test_repeats_are_counted_and_fillers_are_not_asked():
    requests = [chat(talk, 0), chat(talk, 1), chat(talk, 0), chat(talk, 0, __padding_only__=True)]
    found = read_requests(requests, DOCUMENTS)
    assert [one.repeat if one else None for one in found] == [0, 0, 1, None]


def test_a_task_whose_scores_would_mislead_is_refused_with_the_reason():
    with pytest.raises(UnsupportedCallError, match=r"hallusion_bench_image is not run.*an outside model judges"):
        read_requests([chat(talk, task="hallusion_bench_image")], {})


def test_generation_arguments_are_not_changed_for_other_models():
    given = {"max_new_tokens": 5, "until": ["x"], "temperature": 0}
    read_requests([chat(talk, generation=given)], DOCUMENTS)
    assert given == {"max_new_tokens": 5, "until": ["x"], "temperature": 0}


def test_a_questions_digest_tells_its_text_picture_generation_and_seed():
    (asked,) = read_requests([chat(talk)], DOCUMENTS)
    same = asked.digest(asked.item(), 0)
    assert asked.digest(asked.item(), 0) == same
    other = PICTURE.copy()
    other.putpixel((3, 3), (0, 0, 0))
    changed = [
        read_requests([chat(talk)], {"t": {"test": [{"image": other, "question": "is it 0 ?"}]}})[0],
        read_requests([chat(talk)], {"t": {"test": [{"image": PICTURE, "question": "is it 9 ?"}]}})[0],
        read_requests([chat(talk, generation=GENERATION | {"max_new_tokens": 6})], DOCUMENTS)[0],
        read_requests([chat(talk, 1)], DOCUMENTS)[0],
    ]
    digests = {one.digest(one.item(), 0) for one in changed} | {asked.digest(asked.item(), 1)}
    assert len(digests) == 5
    assert same not in digests
