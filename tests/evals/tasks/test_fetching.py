"""Published files: their pinned content, the cache, and what is said without a network."""

import gzip
import hashlib
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from question_rows import DATA

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.benchmark import Published, cache_folder, fetch
from lvlm_guard.evals.tasks.coco import AGLA_PICTURES
from lvlm_guard.evals.tasks.pope.questions import IMANGE, QUESTIONS


class Quiet(SimpleHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server over a folder; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    Quiet.asked = 0
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield tmp_path / "web", f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_the_pinned_content_is_that_of_the_published_files():
    for (data_set, kind), published in [*QUESTIONS.items(), (("coco", "misspelt"), IMANGE)]:
        name = {"misspelt": "adversarial", "adversarial": "adversarial_fixed" if data_set == "coco" else kind}
        content = gzip.decompress((DATA / "pope" / f"{data_set}_pope_{name.get(kind, kind)}.json.gz").read_bytes())
        if "RUCAIBox" in published.url:  # the authors' repository has this one with Windows' line ends
            content = content.replace(b"\n", b"\r\n")
        assert hashlib.sha256(content).hexdigest() == published.sha256, (data_set, kind)
        assert published.url.startswith("https://raw.githubusercontent.com/")


def test_a_file_is_fetched_once_and_then_read_from_the_cache(server):
    web, address = server
    (web / "q.json").write_bytes(b"text\n")
    wanted = Published(f"{address}/q.json", hashlib.sha256(b"text\n").hexdigest())
    path = fetch(wanted)
    assert path.read_bytes() == b"text\n"
    assert path.is_relative_to(cache_folder())
    assert fetch(wanted) == path
    assert Quiet.asked == 1
    path.write_bytes(b"cut")  # a damaged cache is fetched again
    assert fetch(wanted).read_bytes() == b"text\n"
    assert Quiet.asked == 2
    assert [file.name for file in path.parent.iterdir()] == ["q.json"]


def test_another_content_is_refused_and_not_kept(server):
    web, address = server
    (web / "q.json").write_bytes(b"<html>proxy</html>")
    with pytest.raises(DataError, match="18 bytes that are not the published file"):
        fetch(Published(f"{address}/q.json", "0" * 64))
    assert not list(cache_folder().rglob("*.json"))


def test_without_a_network_the_message_says_which_file_and_where_to_put_it(server, monkeypatch):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{held.getsockname()[1]}/coco_pope_random.json"
    wanted = Published(closed, "ab" * 32)
    with pytest.raises(DataError, match=f"Get {closed} .* put it at .*coco_pope_random.json, or give it with --quest"):
        fetch(wanted)
    monkeypatch.setattr("lvlm_guard.evals.tasks.pope.questions.QUESTIONS", dict.fromkeys(QUESTIONS, wanted))
    with pytest.raises(DataError, match=r"coco_pope_random\.json can't be fetched"):
        tasks_of(Settings(tasks=("pope_coco",), images="."))


def test_a_file_put_into_the_cache_by_hand_is_taken(server):
    wanted = QUESTIONS["gqa", "random"]
    target = cache_folder() / "pope" / wanted.sha256[:8] / wanted.name
    target.parent.mkdir(parents=True)
    target.write_bytes(gzip.decompress((DATA / "pope" / "gqa_pope_random.json.gz").read_bytes()))
    assert fetch(wanted) == target


def test_a_cache_that_cant_be_written_is_named(server, tmp_path, monkeypatch):
    web, address = server
    (web / "q.json").write_bytes(b"text\n")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set XDG_CACHE_HOME"):
        fetch(Published(f"{address}/q.json", hashlib.sha256(b"text\n").hexdigest()))


def test_the_papers_preset_captions_the_papers_pictures(server, tmp_path, jpeg, monkeypatch):
    web, address = server
    content = b'{"question_id": 0, "image": "COCO_val2014_000000006871.jpg", "text": "Describe."}\n'
    (web / "chair.jsonl").write_bytes(content)
    listed = Published(f"{address}/chair.jsonl", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr("lvlm_guard.evals.tasks.coco.AGLA_PICTURES", listed)
    (tmp_path / "COCO_val2014_000000006871.jpg").write_bytes(jpeg)
    truth = str(DATA / "chair" / "gt_objects.json.gz")
    (task,) = tasks_of(Settings(tasks=("chair",), images=str(tmp_path), annotations=truth, preset="paper-agla"))
    assert [(item.key, item.prompt, item.truth) for item in task.items] == [("6871", "Describe.", ["bear", "person"])]
    assert AGLA_PICTURES.url.endswith("/Lackel/AGLA/efa126347c41631152a70d7db0a6ac0708bd9d00/data/CHAIR/chair.jsonl")
