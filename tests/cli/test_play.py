"""`lvlm-guard play` as a command: what it refuses, and where it listens."""

import inspect

from lvlm_guard.play.command import play


def test_sharing_is_refused_with_the_reason(run):
    made = run("play", "--share")
    assert made.code == 2
    words = " ".join(made.err.replace("│", " ").split())
    assert "servers of another company" in words
    assert "ssh -L" in words


def test_a_model_and_a_server_are_one_too_many(run):
    made = run("play", "--model", "x/y", "--server", "http://127.0.0.1:1")
    assert made.code == 2
    assert "give one of them" in " ".join(made.err.replace("│", " ").split())


def test_it_listens_on_loopback_unless_told_otherwise():
    assert inspect.signature(play).parameters["host"].default == "127.0.0.1"
