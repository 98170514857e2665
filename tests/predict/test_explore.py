"""explore: the page shows what the command beside it makes, the true nearest slice, and nothing to strangers."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shlex
import signal
import socket
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from html.parser import HTMLParser
from http.client import HTTPConnection
from types import SimpleNamespace
from urllib.parse import urlencode

import browser
import numpy as np
import pytest
import torch
from forks import Forked
from PIL import Image
from test_predict import CONFIG, make_generator, one_line, write
from test_predict_denoising import diffusion_file, vae_file
from tiny import environment

import predict
from data.columns import Column
from data.pack import ensure_pack, kept_pack
from data.walk import DataError
from jobs.predict import explore
from jobs.predict.conditions import attributes_of
from jobs.predict.reconstruct import slices_of
from jobs.predict.trained import open_model
from jobs.view import loopback
from models.metrics import psnr
from models.stylegan2 import Generator

DATA = "phantom:48"
COLUMNS = [Column("class", ("NC", "AD")), Column("age", (), 71.3, 9.0, 55.0, 90.0), Column("sex", ("F", "M"))]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder with the packs of both splits at 32 px."""
    folder = tmp_path_factory.mktemp("packs")
    for split in ("train", "test"):
        ensure_pack(DATA, split=split, resolution=32, cache_dir=folder, progress=False, log=lambda text: None)
    return folder


@pytest.fixture(autouse=True)
def here(packed, monkeypatch):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(packed))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: weights} of every kind."""
    folder = tmp_path_factory.mktemp("weights")
    about = {"data": DATA, "crop": 0}
    torch.manual_seed(3)
    told = Generator(**{k: v for k, v in CONFIG.items() if k != "conditional"}, num_classes=attributes_of(COLUMNS))
    return {
        "classes": write(folder / "classes.safetensors", make_generator(), {"classes": ["NC", "AD"]}, **about),
        "none": write(folder / "none.safetensors", make_generator(conditional=False), conditional=False, **about),
        "columns": write(folder / "columns.safetensors", told, {
            "classes": ["NC", "AD"], "conditions": [c.about() for c in COLUMNS],
        }, **about),
        "diffusion": diffusion_file(folder / "diffusion.safetensors", "--data", DATA),
        "vae": vae_file(folder / "vae.safetensors"),
    }  # fmt: skip


@contextlib.contextmanager
def served(path, monkeypatch, *flags):
    """The server that `predict.py explore` begins, in a thread of this process."""
    found = []
    monkeypatch.setattr(loopback.Server, "serve", lambda server: found.append(server) or waiting.wait(100))
    monkeypatch.setattr(predict, "tell_page", lambda *_: None)
    waiting, ready = threading.Event(), threading.Event()
    begin = loopback.Server.__init__

    def noted(server, *more):
        begin(server, *more)
        server.began = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        server.began.start()
        found.append(server)
        ready.set()

    monkeypatch.setattr(loopback.Server, "__init__", noted)
    words = ["explore", str(path), "--device", "cpu", *map(str, flags)]
    codes = []
    thread = threading.Thread(target=lambda: codes.append(predict.main(predict.parse_args("", words))) or ready.set())
    thread.start()
    ready.wait(100)
    try:
        yield found[0]
    finally:
        found[0].shutdown()
        waiting.set()
        thread.join()
        found[0].began.join()
        found[0].pool.shutdown()
    assert codes == [0]


def ask(server, path="/", values=(), method="GET", token=None, **headers):
    """(status, text, headers) of one request; with the token, and to localhost, unless something else is said."""
    query = urlencode([("token", server.token if token is None else token), *dict(values).items()])
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, f"{path}?{query}", headers={"Host": f"localhost:{server.port}"} | headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers


def pixels(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/png;base64,")))))


def first(server) -> dict:
    """The values with which the page begins."""
    found: dict[str, str] = {}

    class Inputs(HTMLParser):
        list = ""

        def handle_starttag(self, tag, attributes):
            a = dict(attributes)
            if tag == "select":
                self.list = a["name"]
            elif tag == "option" and self.list not in found:
                self.take = self.list
            elif tag == "input" and a.get("type") == "number":
                found[a["name"]] = a["value"]

        def handle_data(self, text):
            if getattr(self, "take", ""):
                found[self.take], self.take = text, ""

    Inputs().feed(ask(server)[1])
    return found


# --- the picture ------------------------------------------------------------------------------------------------------
MOVES = {
    "classes": [{"seed": "7", "class": "AD", "truncation": "0.6"}],
    "none": [{"seed": "2147483647"}],
    "columns": [{"seed": "3", "column0": "AD", "column1": "80.5", "column2": "unknown", "truncation": "0.7"},
                {"column0": "unknown", "column1": "unknown", "column2": "unknown"}],
    "diffusion": [{"seed": "5", "class": "AD", "guidance": "2", "steps": "4"}],
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_the_picture_is_what_the_command_beside_it_makes(files, name, monkeypatch, tmp_path):
    """The command is taken from the page, word by word; bit for bit."""
    seen = set()
    with served(files[name], monkeypatch) as server:
        start = first(server)
        answers = [json.loads(ask(server, "/picture", start | move)[1]) for move in ({}, *MOVES[name])]
    for i, answer in enumerate(answers):
        words = shlex.split(answer["command"])
        assert words[:2] == ["python", "predict.py"]
        assert predict.main(predict.parse_args("", [*words[2:], "--out", str(tmp_path / str(i))])) == 0
        (file,) = (tmp_path / str(i)).glob("000000*.png")
        np.testing.assert_array_equal(pixels(answer["shown"][0]["picture"]), np.asarray(Image.open(file)))
        seen.add(file.read_bytes())
    assert len(seen) == len(answers)  # every move has changed it


def test_the_page_has_what_decides_a_picture_of_this_model(files, monkeypatch):
    expected = {
        "classes": {"seed": "0", "class": "NC", "truncation": "1"},
        "none": {"seed": "0", "truncation": "1"},
        "columns": {"seed": "0", "column0": "NC", "column1": "71.3", "column2": "F", "truncation": "1"},
        "diffusion": {"seed": "0", "class": "NC", "guidance": "1", "steps": "20"},
        "vae": {"slice": "0"},
    }
    for name, values in expected.items():
        model = open_model(files[name], device="cpu")
        fields = explore.Slices(model, DATA, []).controls if name == "vae" else explore.controls_of(model)
        assert {key: control.value for key, control in fields.items()} == values, name
    model = open_model(files["diffusion"], device="cpu")
    fast = replace(model, net=replace(model.net, times=torch.linspace(0, 1, 10)), classes=[])
    assert list(explore.controls_of(fast)) == ["seed"]


def test_a_slider_never_offers_what_is_refused():
    """Its ends, and where it begins, as the page has them, of large and of long numbers."""
    for low, high in ((1106543.2718281, 1987654.3), (1000000.1, 1000001.9), (1 / 3, 2 / 3), (-1e-7 / 3, 1e-7)):
        column = Column("eTIV", (), (low + high) / 2, 1.0, low, high)
        control = explore.controls_of(SimpleNamespace(columns=[column], classes=[], FLAGS=()))["column0"]
        offered = re.findall(r'(?:min|max|value)="([^"]+)"', re.sub("<label.*", "", control.html("column0")))
        assert len(offered) == 6 and all(control.checked(text) == text for text in offered), (low, high)
        assert low - (high - low) / 100 <= float(offered[0]) < float(offered[2]) <= high + (high - low) / 100


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("96 slices (NC 48, AD 48) of 12 patients, 32x32", "Of real slices of other people half"),
        ("96 slices (NC 48, AD 48) of 12 scans, 32x32", "Of held-out slices (divided by scan: some may be of the same"),
        ("96 slices (no classes), 32x32", "Of held-out slices (divided by slice: some may be of the same people) half"),
    ],
)
def test_other_people_only_where_people_were_told_apart(files, monkeypatch, told, says):
    model = open_model(files["none"], device="cpu")
    slices = explore.TrainingSlices(model, "")
    slices.pack.meta["describe"] = f"folders: {told}"
    monkeypatch.setattr(explore, "is_phantom", lambda spec: False)
    assert says in slices.usual("")


def test_the_nearest_training_slice_also_of_a_mirrored_copy(files, packed):
    """Against the pack itself; what is usual is what held-out slices have."""
    model = open_model(files["none"], device="cpu")
    train, held = (kept_pack(DATA, split=s, resolution=32, log=lambda text: None) for s in ("train", "test"))
    slices = explore.TrainingSlices(model, "")
    picture, text = slices.nearest(np.ascontiguousarray(train.images[11:12, :, :, ::-1]))
    np.testing.assert_array_equal(picture, model.original(train.images[11:12])[0])
    lines = text.splitlines()
    assert lines[2] == train.names[11] and "mirrored left to right" in lines[3]
    assert float(lines[1].removeprefix("distance ")) < 0.001
    assert lines[0] == f"class {train.classes[train.labels[11]]}"
    far = [slices.nearest(np.array(held.images[i : i + 1]))[1] for i in range(len(held))]
    usual = np.median([float(re.search(r"distance (\S+)", told)[1]) for told in far])
    half = float(re.search(r"half lie nearer than (\S+),", slices.notes[0])[1])
    assert half == pytest.approx(usual, rel=0.05) and half > 0.002


def test_without_packs_the_picture_stands_alone_and_nothing_is_written(files, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "elsewhere"))
    there = sorted(files["none"].parent.rglob("*"))
    with served(files["none"], monkeypatch) as server:
        page = ask(server)[1]
        answer = json.loads(ask(server, "/picture", first(server))[1])
    assert "not packed here" in page and page.count("<figure>") == len(answer["shown"]) == 1
    assert "not packed here" in capsys.readouterr().out
    assert not (tmp_path / "elsewhere").exists() and sorted(files["none"].parent.rglob("*")) == there
    with pytest.raises(DataError, match="split train are not packed here"):
        kept_pack(DATA, resolution=32)


def test_a_vae_shows_a_slice_and_what_becomes_of_it(files, monkeypatch, tmp_path, capsys):
    with served(files["vae"], monkeypatch) as server:
        found = json.loads(ask(server, "/picture", {"slice": "2"})[1])
        assert ask(server, "/picture", {"slice": "200"})[0] == 400
    model, pack = open_model(files["vae"], device="cpu"), kept_pack(DATA, split="test", resolution=32)
    slice_, output = pack.images[2:3], model.decode(model.encode(np.array(pack.images[2:3])))
    rounded = (output * 255).round().byte().numpy()
    for got, expected in zip(found["shown"], (slice_, rounded), strict=False):
        np.testing.assert_array_equal(pixels(got["picture"]), model.original(expected)[0, 0])
    decibels = float(psnr(output, torch.tensor(slice_ / 255.0).float()))
    assert f"PSNR {decibels:.1f} dB" in found["shown"][1]["text"]
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path))
    code = predict.main(predict.parse_args("", ["explore", str(files["vae"])]))
    assert "predict.py reconstruct packs them" in one_line(capsys, code, 78)


def test_reconstruct_looks_at_slices_as_the_vae_was_trained_on(files, tmp_path):
    """Also what was left out of the data."""
    for person in ("a", "b"):
        for split in ("train", "test"):
            for z in range(10):
                file = tmp_path / split / f"{person}{split}_{z}.png"
                file.parent.mkdir(exist_ok=True)
                Image.fromarray(np.random.default_rng(z).integers(0, 255, (32, 32), np.uint8)).save(file)
    model = open_model(files["vae"], device="cpu")
    model = replace(model, config=model.config | {"include": "*/a*"})
    assert len(slices_of(model, str(tmp_path), "train")) == 10


# --- who may see it ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def page(files, packed):
    """A server of pictures that are made of the values alone."""
    control = explore.Control("seed", "--seed", "0", high=9, step=1)

    def answer(values):
        return {"seed": control.checked(values["seed"])} if values else 1 / 0

    server = loopback.Server(0, lambda nonce: f"<p>{nonce}", answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    server.pool.shutdown()


def test_nothing_without_the_token_and_the_host(page):
    here = f"localhost:{page.port}"
    for status, how in (
        (403, {"token": ""}),
        (403, {"token": page.token[:-1]}),
        (403, {"token": page.token + "x"}),
        (403, {"token": "\u00e9\ud800".encode("utf-8", "surrogatepass")}),
        (403, {"Host": "evil.example"}),
        (403, {"Host": f"localhost.evil.example:{page.port}"}),
        (403, {"Host": f"evil.example@{here}"}),
        (403, {"Host": ""}),
        (200, {"Host": "localhost"}),
        (200, {"Host": "127.0.0.1:6007"}),
        (200, {"Host": "[::1]:6007"}),
    ):
        for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"):
            wanted = status if status == 403 or method == "GET" else 501
            got, text, _ = ask(page, method=method, **how)
            assert got == wanted and text.count("\n") == (got != 200 and method != "HEAD"), (method, how, got, text)
            assert page.token not in text


def test_no_path_but_the_two(page):
    for path in ("/../../etc/passwd", "/etc/passwd", "//etc/passwd", "/%2e%2e/etc/passwd", "/picture/", "/index.html"):
        got, text, _ = ask(page, path)
        assert (got, text) == (404, "there is no such page\n")


def test_a_page_that_loads_nothing_and_is_not_kept_or_framed(page, files):
    _, text, headers = ask(page)
    nonce = text.removeprefix("<p>")
    policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
    assert policy == {
        "default-src": "'none'", "img-src": "data:", "connect-src": "'self'", "style-src": f"'nonce-{nonce}'",
        "script-src": f"'nonce-{nonce}'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert nonce != ask(page)[1].removeprefix("<p>")
    html = explore.Page("<b>", "x", ["<i>"], ["t"], (3, 2), {}, "s").html("n")
    assert "<b>" not in html.replace("<figcaption><b>", "") and "&lt;i&gt;" in html
    assert "http:" not in html and "https:" not in html


def test_values_that_cannot_be_are_one_line(page, capsys):
    for value in ("", "x", "10", "-1", "nan", "inf", "1e9", "../x", "0\n--out x"):
        got, text, _ = ask(page, "/picture", {"seed": value})
        assert got == 400 and text.count("\n") == 1 and "no number from 0 to 9" in text
    query = f"/picture?token={page.token}&seed=1&seed=2"
    for path, status in ((query, 400), (f"/?token={page.token}" + "&a=1" * 200, 403), ("/" + "a" * 70000, 414)):
        connection = HTTPConnection("127.0.0.1", page.port, timeout=60)
        connection.request("GET", path, headers={"Host": "localhost"})
        answer = connection.getresponse()
        assert answer.status == status and answer.read().count(b"\n") == 1
        connection.close()
    assert capsys.readouterr() == ("", "")
    assert ask(page, "/picture")[:2] == (500, "division by zero\n")  # what nobody thought of
    assert capsys.readouterr().err == "error: division by zero\n"


def test_wrong_values_of_a_model(files, monkeypatch):
    with served(files["columns"], monkeypatch) as server:
        start = first(server)
        for wrong in (
            {"column0": "MCI"}, {"column1": "200"}, {"column1": "1" * 60000}, {"seed": "1.5"}, {"seed": "unknown"},
            {"truncation": "9"}, {"out": "/tmp/x"}, {"column9": "1"},
        ):  # fmt: skip
            got, text, _ = ask(server, "/picture", start | wrong)
            assert got == 400 and text.count("\n") == 1 and "Traceback" not in text, wrong
        assert ask(server, "/picture", {"seed": "1"})[0] == 400
        assert ask(server, "/picture", start)[0] == 200


def test_of_those_who_wait_only_the_newest_is_served():
    """The first is being made, two more come: the second is sent away before the first is ready."""
    begun, go, made = threading.Event(), threading.Event(), []

    def answer(values):
        made.append(values["n"])
        begun.set()
        assert go.wait(60)
        return values

    server = loopback.Server(0, str, answer)
    listening = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    listening.start()
    got: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda n=n: got.update({n: ask(server, "/picture", {"n": n})[0]})) for n in range(3)
    ]
    submit, waits = server.pool.submit, threading.Semaphore(0)
    server.pool.submit = lambda *work: (submit(*work), waits.release())[0]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    assert waits.acquire(timeout=60) and waits.acquire(timeout=60)
    threads[2].start()
    threads[1].join(60)
    assert got == {1: 409}
    go.set()
    for thread in threads:
        thread.join(60)
    server.shutdown()
    listening.join()
    server.server_close()
    server.pool.shutdown()
    assert got == {0: 200, 1: 409, 2: 200} and made == ["0", "2"]


# --- from the command line --------------------------------------------------------------------------------------------
def test_ctrl_c_ends_it_and_the_port_is_closed(files, tmp_path, packed):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["predict.py", "explore", files["none"], "--device", "cpu", "--port", port]
        env = environment(packed, XDG_CONFIG_HOME=str(tmp_path)) | {"SSH_CONNECTION": ""}
        command = Forked(words, env)
        lines = [command.stdout.readline() for _ in range(2)]
    address = lines[1].split()[-1]
    assert lines[0].endswith("on loopback only. Ctrl-C ends it.\n") and address.startswith("http://localhost:")
    used, token = int(address.split(":")[2].split("/")[0]), address.partition("token=")[2]
    assert used != port and len(token) >= 32

    def status():
        connection = HTTPConnection("127.0.0.1", used, timeout=60)
        connection.request("GET", f"/?token={token}", headers={"Host": "localhost"})
        return connection.getresponse().status

    assert status() == 200
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 0
    with pytest.raises(ConnectionRefusedError):
        status()
    assert command.stdout.read() == ""
    assert command.stderr.read() == f"port {port}: Address already in use; a free one is used\n"


def test_other_models_are_told_by_the_words_that_name_them(files, monkeypatch, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("weights", "weights-best"):
        os.link(files["none"], run / f"{name}.safetensors")
    with served(run, monkeypatch, "--at", "best") as server:
        command = json.loads(ask(server, "/picture", first(server))[1])["command"]
        assert "<title>run/weights-best.safetensors</title>" in ask(server)[1]
    assert f"generate --run {run} --at best --device cpu --number 1 --seed 0" in command


# --- in a browser -----------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not browser.chromium(), reason="no chromium here: the page is not looked at in a browser")
def test_the_page_in_a_browser(files, monkeypatch, tmp_path):
    """Sliders by keyboard, a list, "unknown", a wrong number; the picture and the command follow. It fits a phone."""
    with served(files["columns"], monkeypatch) as server:
        chromium = browser.Browser(tmp_path)
        try:
            chromium.open(f"http://localhost:{server.port}{server.path}")
            says = "document.getElementById('command')?.textContent.includes"
            chromium.wait_for(f"{says}('--seed 0 ')")
            chromium.evaluate("document.querySelector('input[type=range]').focus()")
            chromium.press("ArrowRight")
            chromium.wait_for(f"{says}('--seed 1 ')")
            chromium.evaluate("""(() => {
                const [sex] = [...document.querySelectorAll("select")].filter(list => list.value == "F");
                sex.value = "M";
                sex.dispatchEvent(new Event("input", {bubbles: true}));
                document.querySelector("input[type=checkbox]").click();
            })()""")
            chromium.wait_for(f"{says}('--set age=unknown --set sex=M --truncation 1')")
            shown = chromium.evaluate("[...document.images].map(image => image.src)")
            assert len(shown) == 2
            # A second page that asks all the time: this one waits longer and longer before it asks again.
            newest, asked = server.newest, []

            def busy(values):
                asked.append(time.monotonic())
                if len(asked) < 3:
                    raise CancelledError
                return newest(values)

            monkeypatch.setattr(server, "newest", busy)
            chromium.evaluate("document.getElementById('message').textContent = ''")
            chromium.evaluate("document.querySelector('form').dispatchEvent(new Event('input'))")
            chromium.wait_for("document.getElementById('message').textContent.includes('made in')")
            assert len(asked) == 3 and asked[1] - asked[0] > 0.25 and asked[2] - asked[1] > 0.55
            start = {"seed": "1", "column0": "NC", "column1": "unknown", "column2": "M", "truncation": "1"}
            expected = json.loads(ask(server, "/picture", start)[1])["shown"]
            assert shown == [one["picture"] for one in expected]
            chromium.evaluate("""(() => {
                const number = document.querySelector("input[type=number]");
                number.value = "-5";
                number.dispatchEvent(new Event("input", {bubbles: true}));
            })()""")
            chromium.wait_for("document.getElementById('message').textContent.includes('no number from 0')")
            # A picture that a newer one overtook is answered by 409, which the page leaves at that.
            complaints = [one for one in chromium.complaints if "409" not in str(one)]
            assert len(complaints) == 1 and "400" in complaints[0]["entry"]["text"]
            wide = "document.documentElement.scrollWidth <= innerWidth"
            assert chromium.evaluate(wide)
            chromium("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
            assert chromium.evaluate(f"innerWidth == 400 && {wide}")
        finally:
            chromium.close()
