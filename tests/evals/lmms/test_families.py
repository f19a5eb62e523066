"""Any guarded model: tiny random ones of each family, from a folder, within lmms-eval."""

import io

import pytest
import tiny
import torch
from PIL import Image

from lvlm_guard.evals.lmms import TASKS
from lvlm_guard.evals.lmms.localize import read_rows
from tests.support.world_files import POPE

TASK = "lvlm_guard_world_pope"
DOCUMENTS = 6
MORE = {"limit": DOCUMENTS, "gen_kwargs": "max_new_tokens=6"}


@pytest.fixture(scope="module", params=["llava", "llava_next", "qwen2_5_vl", "instructblip"])
def pretrained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = tiny.make(request.param, dtype=torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def said(samples):
    return [samples[TASK][doc]["resps"][0][0] for doc in range(DOCUMENTS)]


def bare(folder):
    """Answer without this package: transformers alone, one document at a time."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    answers = []
    for row in read_rows(TASKS / POPE)[:DOCUMENTS]:
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        inputs = processor(images=image, text=tiny.prompt(processor, row["question"]), return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        answers.append(processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


@pytest.mark.slow
def test_plain_answers_are_those_of_transformers_alone_in_any_batch(evaluate, pretrained):
    expected = bare(pretrained)
    for size in (1, 4):
        _, samples = evaluate(f"pretrained={pretrained},method=greedy", [TASK], batch_size=size, **MORE)
        assert said(samples) == expected, size


@pytest.mark.slow
def test_guarded_answers_do_not_depend_on_the_batch(evaluate, pretrained):
    args = f"pretrained={pretrained},method=vcd,alpha=2"
    runs = [said(evaluate(args, [TASK], batch_size=size, **MORE)[1]) for size in (1, 4)]
    assert runs[0] == runs[1]
    _, plain = evaluate(f"pretrained={pretrained},method=greedy", [TASK], **MORE)
    assert runs[0] != said(plain), "the guard does something"
