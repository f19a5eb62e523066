"""`--model_args`: read as text, checked by name and type."""

import pytest

from lvlm_guard.errors import GuardError, KnobError, UnknownNameError
from lvlm_guard.evals.lmms.arguments import code_name, parse, read

BASE = {"pretrained": "some/model", "method": "agla"}


def knobs(found):
    return found.settings.knobs[found.method]


def test_texts_stay_texts_where_lmms_eval_makes_numbers_of_them():
    from lmms_eval.utils import simple_parse_args_string

    text = "pretrained=some/model,method=agla,revision=1234567,alpha=2"
    assert simple_parse_args_string(text)["revision"] == 1234567
    found = read(parse(text))
    assert found.settings.revision == "1234567"
    assert knobs(found) == {"alpha": 2.0}


@pytest.mark.parametrize("revision", ["12e4567", "inf", "infinity", "-inf"])
def test_a_revision_that_lmms_evals_cache_takes_for_infinity_is_refused(revision):
    with pytest.raises(KnobError, match="number infinity"):
        read(parse(f"pretrained=some/model,method=agla,revision={revision}"))


@pytest.mark.parametrize("revision", [float("inf"), 1234567])
def test_a_revision_that_is_no_text_any_more_is_refused(revision):
    with pytest.raises(KnobError, match=r"revision is .*give a text"):
        read(BASE | {"revision": revision})


def test_a_value_may_hold_commas_and_equals_signs():
    found = read(parse('pretrained=a,method=vote,objects=["dog", "cat"],template=a picture, {article} {object}'))
    assert knobs(found) == {"objects": ("dog", "cat"), "template": "a picture, {article} {object}"}
    assert parse("pretrained=/a b/c=d,method=agla") == {"pretrained": "/a b/c=d", "method": "agla"}
    assert parse("") == {}


@pytest.mark.parametrize("text", ["pretrained", "=x", "pretrained=a,pretrained=b"])
def test_a_text_that_is_no_list_of_arguments_is_refused(text):
    with pytest.raises(KnobError, match="--model_args"):
        parse(text)


def test_knobs_take_the_type_of_their_default():
    found = read(parse("pretrained=a,method=vote,lam=2,by_word=true,claim=none,template=a {object}"))
    assert knobs(found) == {"lam": 2.0, "by_word": True, "claim": None, "template": "a {object}"}
    assert isinstance(knobs(found)["lam"], float)
    found = read(parse("pretrained=a,method=vcd,noise_step=300,vcd.seed=7,seed=2"))
    assert knobs(found) == {"noise_step": 300, "seed": 7}
    assert found.seed == 2


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"metod": "agla"}, KnobError, "Did you mean 'method'"),
        ({"alfa": 2}, KnobError, "Did you mean 'alpha'"),
        ({"agla.alfa": 2}, KnobError, "Did you mean 'alpha'"),
        ({"vcd.alpha": 2}, KnobError, "no knob of 'agla'"),
        ({"lam": 2}, KnobError, "no knob of 'agla'"),
        ({"guard": "agla"}, KnobError, "no argument of lvlm_guard"),
        ({"alpha": "two"}, KnobError, "alpha is 'two': give a number"),
        ({"method": "greedi"}, UnknownNameError, "Did you mean 'greedy'"),
        ({"method": "sample"}, UnknownNameError, "do_sample=True"),
        ({"batch_size": 0}, KnobError, "batch_size is 0"),
        ({"batch_size": "auto"}, KnobError, "not searched for"),
        ({"batch_size": True}, KnobError, "batch_size is True"),
        ({"seed": "-1"}, KnobError, "seed is '-1'"),
        ({"seed": 1.5}, KnobError, r"seed is 1\.5"),
        ({"execution": "fast"}, KnobError, "auto, lazy, batched"),
        ({"code": "v0"}, KnobError, "the code that runs is"),
        ({"method": "vote", "objects": "[dog"}, KnobError, "no JSON"),
        ({"method": "vote", "by_word": "perhaps"}, KnobError, "true or false"),
        ({"method": "vcd", "noise_step": "1.5"}, KnobError, "a whole number"),
    ],
)
def test_what_means_nothing_is_refused(given, error, match):
    with pytest.raises(error, match=match):
        read(BASE | given)


def test_the_plain_model_has_no_knobs():
    assert read({"pretrained": "a", "method": "greedy"}).settings.knobs == {}
    with pytest.raises(KnobError, match="Knobs of greedy: none"):
        read({"pretrained": "a", "method": "greedy", "alpha": 2})


def test_arguments_that_name_the_running_code_are_read_back():
    found = read(parse(f'pretrained=some/model,method=vote,lam=1.5,objects=["dog", "cat"],code={code_name()}'))
    assert found.code == code_name()
    assert knobs(found) == {"lam": 1.5, "objects": ("dog", "cat")}


def test_the_settings_are_those_of_a_run_with_this_method_alone():
    settings = read(parse("pretrained=a/b,method=agla,alpha=1,dtype=bfloat16,revision=v2,batch_size=3")).settings
    assert (settings.model, settings.methods, settings.knobs) == ("a/b", ("agla",), {"agla": {"alpha": 1.0}})
    assert (settings.dtype, settings.revision, settings.batch) == ("bfloat16", "v2", 3)
    assert settings.controls is False


def test_a_batch_size_given_twice_must_be_the_same():
    from lvlm_guard.evals.lmms.model import LvlmGuard

    with pytest.raises(GuardError, match="batch_size is 2 in --model_args, but 4 beside them"):
        LvlmGuard.create_from_arg_string("pretrained=embedded,method=greedy,batch_size=2", {"batch_size": 4})
    # 1 is what lmms-eval passes when the user gives nothing
    model = LvlmGuard.create_from_arg_string(
        "pretrained=embedded,method=greedy,batch_size=2,device=cpu", {"batch_size": 1, "max_batch_size": None}
    )
    assert model.arguments.settings.batch == 2
    with pytest.raises(KnobError, match="max_batch_size"):
        LvlmGuard.create_from_arg_string("pretrained=embedded,method=greedy", {"max_batch_size": 8})
