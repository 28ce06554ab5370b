"""The demo page's server: what it gives away, whom it lets in, how many may wait."""

import gc
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager

import pytest

from tests.tiny_wan import save

pytest.importorskip("gradio", reason="no gradio: pip install -e '.[test]'")

from dit_sparse.demos import form
from dit_sparse.demos.app import WAITING, Settings, serve
from dit_sparse.demos.runner import Done

# gradio leaves sockets and loops to the collector, which runs here and not in another file's tests
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
PROMPT = "a red circle moves right"


@pytest.fixture(scope="module", autouse=True)
def collected():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def app(model, scratch):
    with serve(Settings(scratch / "videos", (model,), "cpu"), scratch) as app:
        yield app


def ask(app, path, data=None, **headers):
    """Return status, text and headers of an answer."""
    request = urllib.request.Request(app.page.local_url + path.lstrip("/"), headers=headers)
    if data is not None:
        request.data = json.dumps(data).encode()
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace"), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace"), error.headers


def number(app, name):
    """Return the number of an event by its name."""
    (found,) = (n for n, fn in app.page.fns.items() if fn.api_name == name)
    return found


def join(app, visitor, **changes):
    """Put a generation of a visitor into the queue; returns the answer."""
    values = {
        "prompt": PROMPT, "method": "pisa", "keep": 0.5, "steps": 2, "size": form.OWN,
        "frames": form.OWN, "seed": 0, "settings": "", "model": app.settings.model, **changes,
    }  # fmt: skip
    data = [values[name] for name in form.FIELDS]
    body = {"data": data, "fn_index": number(app, "generate"), "session_hash": visitor}
    return ask(app, "/gradio_api/queue/join", body)[:2]


def messages(app, visitor):
    """Yield what the server tells a visitor, until it says that the work is over."""
    address = f"{app.page.local_url}gradio_api/queue/data?session_hash={visitor}"
    with urllib.request.urlopen(address, timeout=120) as stream:
        for line in stream:
            if line.startswith(b"data:"):
                message = json.loads(line[5:])
                yield message
                if message["msg"] in ("process_completed", "close_stream"):
                    return


@contextmanager
def busy(app):
    """Have something run on the device for as long as the block lasts."""
    go, ready = threading.Event(), threading.Event()

    def job(turn):
        ready.set()
        go.wait(120)

    thread = threading.Thread(target=lambda: list(app.runner.work("busy", job)))
    thread.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        go.set()
        thread.join()


def test_a_generation_over_http(app):
    """Its steps are told one by one; its video is given away, and plays."""
    assert join(app, "one")[0] == 200
    told = list(messages(app, "one"))
    texts = [json.dumps(m.get("output", "")) for m in told if m["msg"] == "process_generating"]
    assert any("dense: step 2 of 2" in text for text in texts)
    end = told[-1]
    assert end["success"], end
    last = "".join(texts)
    path = last[last.index("gradio_api/file=") :].split('\\"')[0]
    status, _, headers = ask(app, "/" + path)
    assert status == 200 and headers["Content-Type"] == "video/mp4"


def test_it_listens_to_this_machine_alone(app):
    assert app.page.server_name == "127.0.0.1" and not (app.page.share or app.page.share_url)


SECRET = "nobody may read this"


@pytest.mark.parametrize("route", ["file=", "file/", "stream/a/b/c/", "static/", "assets/"])
@pytest.mark.parametrize("way", ["plain", "dots", "quoted", "link", "checkout", "gone"])
def test_no_other_file_can_be_read(app, scratch, route, way):
    """By no spelling of its name does a file outside the output folder come out."""
    secret = scratch / "secret.txt"
    secret.write_text(SECRET)
    out = app.folder
    out.mkdir(exist_ok=True)
    (out / "link.txt").unlink(missing_ok=True)
    (out / "link.txt").symlink_to(secret)
    path = {
        "plain": str(secret),
        "dots": f"{out}/../secret.txt",
        "quoted": urllib.parse.quote(f"{out}/../secret.txt", safe="").replace(".", "%2e"),
        "link": f"{out}/link.txt",
        "checkout": "pyproject.toml",
        "gone": f"{out}/none.txt",
    }[way]
    status, text, _ = ask(app, f"/gradio_api/{route}{path}")
    assert status >= 400 or "<!doctype html>" in text.lower()
    assert SECRET not in text and "[build-system]" not in text


def test_a_file_in_a_field_is_not_read(app, scratch):
    """A value that pretends to be a file is no way in."""
    secret = scratch / "secret.txt"
    secret.write_text(SECRET)
    trick = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    for field in ("prompt", "size", "seed", "model"):
        join(app, f"thief-{field}", **{field: trick})
    files = [f for f in scratch.rglob("*") if f.is_file() and f != secret and not f.is_symlink()]
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", ""), ("steps", 10**6), ("size", "9000 x 9000"), ("model", "/etc"), ("seed", -1)],
)
def test_wrong_input_is_refused_before_the_queue(app, field, value):
    """The answer comes while another's work has the device; nobody waits to hear a no."""
    with busy(app):
        status, text = join(app, f"wrong-{field}", **{field: value})
    # by the check of the whole form, or by the field's own
    assert status in (400, 422) and "detail" in text
    assert list(app.runner.work("next", lambda turn: 1)) == [Done(1)]


def test_the_queue_has_an_end(app):
    """One more than may wait is told so, and everyone else keeps the place."""
    with busy(app):
        answers = [join(app, f"visitor-{n}") for n in range(WAITING + 3)]
        codes = [status for status, _ in answers]
        full = codes.index(503)
        assert full in (WAITING, WAITING + 1) and set(codes[full:]) == {503}
        assert "Queue is full" in answers[full][1]
        for n in range(full):
            app.runner.stop(f"visitor-{n}")
        queues = app.page._queue.event_queue_per_concurrency_id.values()
        for event in [event for waiting in queues for event in waiting.queue]:
            body = {"session_hash": event.session_hash, "fn_index": event.fn._id,
                    "event_id": event._id}  # fmt: skip
            assert ask(app, "/gradio_api/cancel", body)[0] == 200


def test_only_work_for_the_device_waits(app):
    """A full queue stops nobody who looks at what is there."""
    waiting = {fn.api_name for fn in app.page.fns.values() if fn.queue and fn.fn is not None}
    assert waiting - {"leave"} == {"generate", "look", "measure"}


def test_copies_are_kept_and_not_given_away(model, tmp_path):
    """The folder of the page's owner gets the videos; nothing in it can be read by a visitor."""
    (kept := tmp_path / "kept").mkdir()
    (kept / "private.txt").write_text(SECRET)
    with serve(Settings(tmp_path / "videos", (model,), "cpu", kept), tmp_path) as app:
        assert join(app, "one")[0] == 200
        assert list(messages(app, "one"))[-1]["success"]
        assert len(list(kept.rglob("*.mp4"))) == 3
        for file in kept.rglob("*.*"):
            assert ask(app, f"/gradio_api/file={file}")[0] >= 400


def test_large_uploads_are_refused(app):
    """Nobody fills the disk."""
    edge = "edge"
    body = (
        f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="a.bin"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n{'x' * 3_000_000}\r\n--{edge}--\r\n"
    )
    request = urllib.request.Request(app.page.local_url + "gradio_api/upload", body.encode())
    request.add_header("Content-Type", f"multipart/form-data; boundary={edge}")
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as told:
        urllib.request.urlopen(request, timeout=60)
    assert getattr(told.value, "code", 413) == 413


def test_a_password_is_asked_for(model, tmp_path):
    with serve(Settings(tmp_path / "videos", (model,)), tmp_path, auth=("me", "secret")) as app:
        assert ask(app, "/config")[0] == 401
        assert join(app, "one")[0] == 401
        assert ask(app, f"/gradio_api/file={tmp_path}/videos/a")[0] == 401
