"""Generation arguments: honoured or refused, never dropped."""

import pytest

from lvlm_guard.errors import UnsupportedCallError
from lvlm_guard.evals.lmms.requests import KEYS, MOST_TOKENS, Generation, read_generation


def test_what_stock_tasks_say_means_greedy():
    given = {"max_new_tokens": 128, "temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}
    found = read_generation(given, "pope_adv")
    assert found == Generation(128, ("\n\n",))
    assert found.options() == {"do_sample": False, "num_beams": 1}
    assert given["top_p"] == 0, "lmms-eval's own arguments are left as they are"


def test_nothing_given_means_greedy_up_to_a_limit():
    assert read_generation({}, "t") == Generation(MOST_TOKENS)
    assert read_generation(dict.fromkeys(KEYS), "t") == Generation(MOST_TOKENS)


def test_sampling_keeps_its_arguments():
    found = read_generation(
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "max_new_tokens": 9}, "t"
    )
    assert found.options() == {"do_sample": True, "num_beams": 1, "temperature": 0.7, "top_p": 0.9, "top_k": 40}


def test_a_temperature_alone_asks_for_sampling_as_lmms_eval_has_it():
    assert read_generation({"temperature": 0.5}, "t").do_sample
    assert not read_generation({"temperature": 0.5, "do_sample": False}, "t").do_sample


def test_one_stop_may_be_a_text():
    assert read_generation({"until": "\n"}, "t").until == ("\n",)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"max_gen_toks": 5}, "'max_gen_toks' is not understood"),
        ({"maximum_new_tokens": 5}, "Did you mean 'max_new_tokens'"),
        ({"repetition_penalty": 1.2}, "not understood"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many'"),
        ({"max_new_tokens": 1.5}, r"max_new_tokens is 1\.5"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"do_sample": "yes"}, "do_sample is 'yes'"),
        ({"do_sample": True, "temperature": 0}, "no distribution"),
        ({"do_sample": True, "top_p": 0}, "top_p is 0"),
        ({"do_sample": True, "top_p": 1.1}, r"top_p is 1\.1"),
        ({"do_sample": True, "top_k": -1}, "top_k is -1"),
        ({"do_sample": True, "num_beams": 4}, "num_beams=4 is not supported"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"until": [3]}, "until is"),
    ],
)
def test_what_cant_be_honoured_is_an_error_that_names_the_task(given, match):
    with pytest.raises(UnsupportedCallError, match=f"Task some_task: .*{match}"):
        read_generation(given, "some_task")
