"""Matchers side by side: each training answers with its own, each control stands once for all that it depends on."""

import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from lvlm_guard import guard, methods
from lvlm_guard.adapters.loading import ADAPTERS
from lvlm_guard.embedded.world import CAPTION_PROMPT, scenes
from lvlm_guard.errors import GuardError, KnobError, UnknownNameError, WeightsError
from lvlm_guard.evals.decoders.lineup import decoders_of
from lvlm_guard.evals.decoders.matchers import check_matchers
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.generate import prepare_run
from lvlm_guard.evals.infer.server import server_run
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.world import NOUNS
from lvlm_guard.matching import load_matcher
from lvlm_guard.pretrained import ask as prompted
from lvlm_guard.pretrained import load_model, spoken

SETTINGS = Settings(tasks=("world_chair",), methods=("vote",), controls=False, captions=6, batch=6)


def quiet(settings, out, echo=lambda _: None):
    """Ask, and return the folder's note of who was asked with the answers: (decoder, seed) -> texts."""
    ask(settings, out, echo=echo, bar=False, workers=1)
    found = {}
    for row in pq.read_table(out / "answers.parquet").to_pylist():
        found.setdefault((row["decoder"], row["seed"]), []).append(row["text"].strip())
    return json.loads((out / "asked.json").read_text()), found


def trained(folder, scale, slope=1.0):
    """Another training of the embedded dual prompts: weaker prompts, another calibration."""
    shutil.copytree(ADAPTERS / "dual-prompt", folder)
    weights = folder / "adapter_model.safetensors"
    save_file({name: scale * weight for name, weight in load_file(weights).items()}, weights, {"format": "pt"})
    card = json.loads((folder / "guard_dual_prompt.json").read_text())
    card["calibration"][0] *= slope
    (folder / "guard_dual_prompt.json").write_text(json.dumps(card))
    return str(folder)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dual-prompt")
    return trained(folder / "seed-0", 1.0), trained(folder / "seed-1", 0.5, -1.0)


@pytest.fixture(scope="module")
def matched(trainings):
    return replace(SETTINGS, methods=("vote", "vcd"), matchers={"blip-itm": ("blip-itm",), "dual-prompt": trainings})


@pytest.fixture(scope="module")
def asked(matched, tmp_path_factory):
    return quiet(Settings.of(json.loads(json.dumps(matched.to_dict()))), tmp_path_factory.mktemp("run"))


def test_each_training_answers_with_its_own_matcher(asked, trainings):
    model, processor = guard(*load_model())
    pictures = [Image.fromarray(image) for image in scenes("test_cap", 6).image]
    inputs = prompted(processor, [[picture] for picture in pictures], [CAPTION_PROMPT] * 6)
    told = []
    for place in ("blip-itm", *trainings):
        vote = methods.Vote(matcher=place, objects=NOUNS)
        out = model.generate(**inputs, guard=vote, max_new_tokens=64, do_sample=False)
        told.append([spoken(processor, one[inputs["input_ids"].shape[1] :].tolist()).strip() for one in out])
    _, found = asked
    assert [found["vote, blip-itm", 0], *(found["vote, dual-prompt", seed] for seed in (0, 1))] == told
    assert told[1] != told[2]


def test_the_run_s_file_says_which_folders_and_weights_matched(asked, trainings):
    told = {d["name"]: d for d in asked[0]["decoders"]}
    assert list(told) == ["greedy", "vote, blip-itm", "vote, dual-prompt", "vcd"]
    dual = told["vote, dual-prompt"]
    assert (dual["matchers"], dual["seeds"]) == (list(trainings), 2)
    assert dual["knobs"]["matcher"] == [load_matcher(place).version for place in trainings]
    assert len(set(dual["knobs"]["matcher"])) == 2
    assert told["vote, blip-itm"]["knobs"]["matcher"] == load_matcher("embedded").version
    assert [told[name]["baseline"] for name in told] == [None, "greedy", "vote, blip-itm", "greedy"]


def test_a_folder_that_was_trained_anew_is_another_run(tmp_path):
    folder = tmp_path / "mine"
    settings = replace(SETTINGS, captions=1, matchers={"mine": (trained(folder, 0.9),)})
    quiet(settings, tmp_path / "run")
    shutil.rmtree(folder)
    trained(folder, 0.8)
    with pytest.raises(DataError, match=r"other weights.*--start-over"):
        quiet(settings, tmp_path / "run")


@pytest.mark.slow
def test_controls_stand_once_for_each_matcher_only_where_they_depend_on_it(trainings):
    settings = Settings(methods=("agla", "vote", "vcd"), matchers={"clip": ("clip",), "mine": trainings})
    found = {d.name: d for d in prepare_run(replace(settings, limit=1, captions=1)).decoders}
    once = ["greedy", "sample", "sample-matched", "apc(0.5)", "apc(0.1)", "tilt", "olm"]
    each = ["agla, clip", "agla-sample, clip", "agla-random, clip", "agla, mine", "agla-random, mine"]
    assert list(found) == [*once, *each, "vote, clip", "matcher, clip", "vote, mine", "matcher, mine", "vcd"]
    assert {name for name, d in found.items() if d.matchers == trainings} == {n for n in found if n.endswith("mine")}
    assert [found["agla-random, mine"].guard(seed).matcher.matcher for seed in (0, 1)] == list(
        map(load_matcher, trainings)
    )
    assert (found["agla-random, mine"].seeds, found["agla-random, clip"].seeds) == (2, 3)
    assert {name: d.control_of for name, d in found.items() if d.control_of} == {
        "agla-random, clip": "agla, clip", "agla-random, mine": "agla, mine",
        "matcher, clip": "vote, clip", "matcher, mine": "vote, mine",
    }  # fmt: skip
    # the usual matcher, or else the first, is what others are held against
    assert [found[name].baseline for name in ("agla, clip", "agla, mine", "vote, mine", "matcher, mine")] == [
        "greedy", "agla, clip", "vote, clip", "greedy",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_matcher_given_as_a_knob_has_its_controls_too():
    settings = Settings(limit=1, captions=1, methods=("agla", "vote"))
    knobs = {name: {"matcher": "clip"} for name in settings.methods}
    found = {d.name: d for d in prepare_run(replace(settings, knobs=knobs)).decoders}
    assert {"agla-random", "matcher"} <= found.keys()
    assert found["agla-random"].guard(0).matcher.matcher.version == load_matcher("embedded-clip").version


def test_matchers_that_are_combined_are_one():
    check_matchers({"both": ("blip-itm+embedded-clip",), "blip-itm": ("blip-itm",)})
    check_matchers(
        {"weighed": ("2*blip-itm+1*embedded-clip@text", "blip-itm+clip"), "mine": ("embedded-clip@saliency",)}
    )
    with pytest.raises(WeightsError, match="there is no folder 'blip-itm\\+nothing'"):
        check_matchers({"both": ("blip-itm+nothing",)})


@pytest.mark.parametrize(
    ("matchers", "error", "said"),
    [
        ({"dual-promt": ("dual-promt",)}, UnknownNameError, "Did you mean 'dual-prompt'"),
        ({"mine": ("/none/there",)}, WeightsError, "there is no folder"),
        ({"mine": ("{empty}",)}, WeightsError, "holds no matcher.*train dual-prompt"),
        ({"ranker": ("{dual}",)}, KnobError, "is a 'dual-prompt' matcher, no 'ranker'"),
        ({"mine": ("{dual}", "ranker")}, KnobError, "trainings of one matcher"),
        ({"mine": ("{dual}", "{dual}")}, KnobError, "has the weights of mine="),
        ({"mine": ("{dual}",), "copy": ("{copy}",)}, KnobError, "has the weights of mine="),
    ],
)
def test_what_is_no_matcher_is_refused_before_the_model_is_looked_for(trainings, tmp_path, matchers, error, said):
    places = {"empty": tmp_path / "empty", "dual": trainings[0], "copy": tmp_path / "copy"}
    places["empty"].mkdir()
    shutil.copytree(trainings[0], places["copy"])
    told = {name: tuple(place.format(**places) for place in given) for name, given in matchers.items()}
    with pytest.raises(error, match=said):
        quiet(replace(SETTINGS, model="no/such-model", matchers=told), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ("vcd",)}, r"no method of this run \(vcd\) has a matcher"),
        ({"methods": ("greedy",)}, "no method of this run"),
        ({"knobs": {"vote": {"matcher": "clip"}}}, "by --knob and by --matcher"),
        ({"sweep": {"lam": (1.0,)}, "split": "val"}, "vote.matcher=clip"),
    ],
)
def test_matchers_that_no_method_could_take_are_refused(changes, said):
    with pytest.raises(KnobError, match=said):
        decoders_of(replace(SETTINGS, matchers={"clip": ("clip",)}, **changes), None)


def test_two_names_of_the_same_weights_are_found_once_they_are_loaded():
    matchers = {"dual-prompt": ("dual-prompt",), "built-in": ("embedded-dual-prompt",)}
    with pytest.raises(KnobError, match="has the weights of dual-prompt=dual-prompt"):
        prepare_run(replace(SETTINGS, captions=1, matchers=matchers))


def test_a_server_asks_its_own_matcher():
    with pytest.raises(GuardError, match="--matcher is for a model in this process"):
        server_run(replace(SETTINGS, model="m", server="http://127.0.0.1:1", matchers={"clip": ("clip",)}))
