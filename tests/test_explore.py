"""``tsdae explore``: what its pages show, on tiny models; the pages themselves in a browser (marked browser)."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.scripts import SCRIPTS, Run
from tsdae.commands.explore import easy_sentences, load_explorer
from tsdae.commands.main import explore
from tsdae.commands.settings import ExploreConfig
from tsdae.evaluation.sts import unit
from tsdae.explore.pages import TITLE
from tsdae.explore.views import MAPPED, NEIGHBOURS, PCA, Choice, Explorer, Side
from tsdae.packing import Packed
from tsdae.run import folder
from tsdae.text.tokenization import decoded

SENTENCE = tiny.SENTENCES[2]
SCRIPT = "</script><script>document.title='injected'</script><img src=x onerror=\"document.title='injected'\">"
TEXTS = [
    f"{who} {what} ." for who in ("a man", "the dog", "a small bird") for what in tiny.SENTENCES[2:]
] + tiny.SENTENCES
SENTENCES = [SENTENCE, SCRIPT, *TEXTS[:10]]
NEAR = r"(http|ws)://127\.0\.0\.1:|file:|data:|blob:"  # addresses on this machine
PATIENCE = 60_000  # milliseconds
SETTINGS = {"learning_rate": 1e-3, "model": "model", "corpus": "text.txt", "words": "auto", "max_length": 40}
SETTINGS |= {"noise_ratio": 0.6, "pooling": "cls", "objective": "tsdae"}


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    start, model = tiny.encoder(seed=1), tiny.model()
    return Explorer(TEXTS, Side("start", start, TEXTS), Side("run", model.encoder, TEXTS), model, max_length=30)


@pytest.fixture
def trained(place: Path) -> Path:
    """A run in runs/002, of a text with a script in it; runs/010 has no encoder yet."""
    (place / "text.txt").write_text("\n".join([*TEXTS, SCRIPT]), encoding="utf-8")
    folder.Run("runs/002", SETTINGS).save_last(tiny.model(seed=3, dtype=torch.float32))
    (place / "runs" / "010").mkdir()
    (place / "runs" / "010" / "config.json").write_text("{}")
    return place


# ---------------------------------------------------------------------------------------------------------------
# What is shown


def test_the_words_that_stay_are_those_of_the_noise(explorer: Explorer) -> None:
    """The same as a dataset of the sentence alone gives to the encoder, in epoch 0."""
    choices = [Choice(ratio, seed) for ratio in (0.0, 0.3, 0.6, 0.95) for seed in (0, 5)]
    found = explorer.look(SENTENCE, choices)
    assert found["words"] == SENTENCE.split()
    for (ratio, seed), view in zip(choices, found["views"], strict=True):
        noisy, _ = tiny.dataset([SENTENCE], noise_ratio=ratio, seed=seed).text(0)
        kept = [word for word, stays in zip(found["words"], view["stays"], strict=True) if stays]
        assert "".join(kept) == noisy.replace(" ", "")
    counts = [sum(view["stays"]) for view in found["views"]]
    assert counts[:2] == [len(found["words"])] * 2 > counts[2:4] > counts[4:6] > counts[6:], "more is deleted"
    assert found["views"][2]["stays"] != found["views"][3]["stays"], "the seed matters"


def test_neighbours_and_text_are_of_what_stays(explorer: Explorer) -> None:
    """The vectors, one sentence at a time: of the noisy ids under each model, written again by the decoder."""
    for ratio, seed in ((0.0, 0), (0.5, 1), (0.9, 2)):
        (view,) = explorer.look(f"  {SENTENCE} ", [Choice(ratio, seed)])["views"]
        ids = tiny.dataset([SENTENCE], noise_ratio=ratio, seed=seed)[0].noisy_ids
        own = TEXTS.index(SENTENCE)
        for number, side in enumerate((explorer.before, explorer.after)):
            with torch.no_grad():
                vector = side.encoder(Packed.from_lists([ids]).to("cpu")).numpy()
            cosines = unit(side.encoder.encode(TEXTS)) @ unit(vector)[0]
            order = [row for row in np.argsort(-cosines, kind="stable") if row != own][:NEIGHBOURS]
            assert [row for row, _ in view["near"][number]] == order
            assert [float(shown) for _, shown in view["near"][number]] == pytest.approx(cosines[order], abs=1e-3)
        assert view["written"] == explorer.model.reconstruct(torch.from_numpy(vector), 30)[0]
    assert view["near"][0] != view["near"][1], "the models differ"


def test_what_is_too_long_is_not_read() -> None:
    start, model = tiny.encoder(seed=1), tiny.model()
    short = Explorer(TEXTS, Side("start", start, TEXTS), Side("run", model.encoder, TEXTS), model, max_length=6)
    (view,) = short.look(SENTENCE, [Choice(0.0, 0)])["views"]
    assert view["stays"] == [place < 4 for place in range(len(SENTENCE.split()))]


def test_words_are_those_of_the_run() -> None:
    start, model = tiny.encoder(seed=1), tiny.model()
    sides = Side("start", start, TEXTS), Side("run", model.encoder, TEXTS)
    assert Explorer(TEXTS, *sides, model).look("unknown cats", [Choice(0, 0)])["words"] == ["unknown", "cats"]
    by_tokens = Explorer(TEXTS, *sides, model, words="tokens").look("unknown cats", [Choice(0, 0)])
    assert [word.replace("##", "") for word in by_tokens["words"]] == ["un", "known", "cat", "s"]


def test_a_map_has_the_directions_of_the_largest_variance() -> None:
    """Points on a plane of 7 dimensions: all of the variance, distances as they were but for the scale, in [-1, 1]."""
    generator = np.random.default_rng(0)
    plane_2D = np.linalg.qr(generator.normal(size=(7, 2)))[0].T
    points_R2 = generator.normal(size=(40, 2)) * (3, 1)
    vectors = points_R2 @ plane_2D + generator.normal(size=7)
    pca = PCA.of(vectors)
    places = np.array(pca.places(vectors))
    assert pca.share == pytest.approx(1.0)
    assert (places[:, 0].min(), places[:, 0].max()) == pytest.approx((-1, 1))
    assert np.abs(places).max() == pytest.approx(1)
    between = [np.linalg.norm(rows[1:] - rows[:-1], axis=1) for rows in (points_R2, places)]
    assert between[1] * pca.scale == pytest.approx(between[0], abs=0.01)
    assert np.abs(pca.places(vectors * 100)).max() == pytest.approx(1.1), "what is far off is at the edge"
    assert PCA.of(np.ones((4, 7))).places(np.ones((2, 7))) == [[0, 0], [0, 0]], "all vectors the same"


def test_the_background_is_json_of_every_text(explorer: Explorer) -> None:
    shown = json.loads(json.dumps(explorer.background()))
    assert shown["texts"] == TEXTS
    assert [side["name"] for side in shown["sides"]] == ["start (cls)", "run (cls)"]
    assert all(len(side["places"]) == len(TEXTS) <= MAPPED and 0 < side["share"] <= 1 for side in shown["sides"])
    json.dumps(explorer.look(SENTENCE, [Choice(0.5, 0)]))


@pytest.mark.parametrize("sentence", ["", "  ", "\u200d"])
def test_a_sentence_without_words_is_refused(sentence: str, explorer: Explorer) -> None:
    with pytest.raises(ValueError, match="the sentence has no words"):
        explorer.look(sentence, [Choice(0.5, 0)])


# ---------------------------------------------------------------------------------------------------------------
# Which run, which text


def test_a_run_brings_its_start_text_and_settings(trained: Path) -> None:
    explorer, ratio = load_explorer("runs/002", ExploreConfig(device="cpu"))
    assert sorted(explorer.texts) == sorted({" ".join(text.split()) for text in [*TEXTS, SCRIPT]})
    assert explorer.before.name == "before: model (cls)"
    assert (explorer.max_length, ratio, explorer.untrained) == (40, 0.6, None)
    assert len(load_explorer("runs/002", ExploreConfig(limit=10))[0].texts) == 10
    other, _ = load_explorer("runs/002", ExploreConfig(before="runs/002", corpus="pairs.tsv", column="sentence1"))
    assert set(other.texts) <= set(tiny.SENTENCES)
    assert np.array_equal(other.before.unit_RD, other.after.unit_RD)


def test_a_prepared_text_is_written_from_its_tokens(trained: Path) -> None:
    tiny.prepared(trained / "prepared")
    folder.Run("runs/003", SETTINGS | {"corpus": "prepared", "words": None}).save_last(tiny.model())
    texts = load_explorer("runs/003", ExploreConfig(words="tokens"))[0].texts
    encoder = tiny.encoder()
    assert sorted(texts) == sorted(
        decoded(encoder.tokenizer(text)["input_ids"], encoder.tokenizer) for text in tiny.SENTENCES
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"objective": "simcse"}, "runs/003 was trained by --objective simcse; its decoder is untrained"),
        ({}, "runs/003 has no decoder.safetensors"),
    ],
)
def test_a_run_without_a_decoder_writes_nothing_and_says_why(
    settings: dict[str, Any], reason: str, trained: Path
) -> None:
    folder.Run("runs/003", SETTINGS | settings).save_last(tiny.model())
    if not settings:
        Path("runs/003/decoder.safetensors").unlink()
    explorer, _ = load_explorer("runs/003", ExploreConfig())
    (view,) = explorer.look(SENTENCE, [Choice(0.5, 0)])["views"]
    assert view["written"] is None
    assert explorer.background()["untrained"] == reason


def test_sentences_to_start_with_are_short_where_there_are_some() -> None:
    texts = ["too short", *(f"a sentence of seven words , {k}" for k in range(20))]
    assert len(set(easy_sentences(texts))) == 12
    assert "too short" not in easy_sentences(texts)
    assert sorted(easy_sentences(texts[:5])) == sorted(texts[:5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--port 0", "--port must be in [1, 65535], got 0"),
        ("--static page.pdf", "--static page.pdf must end in .html"),
        ("--static none/page.html", "does not exist"),
        ("--column body", "--column needs --corpus"),
        ("runs/002 --sentence " + "a " * 13, "--sentence takes 12 sentences at most, got 13"),
        (
            "./nowhere --static page.html",
            "./nowhere has no config.json of a run, so the model it started from is unknown",
        ),
        ("--static page.html --before ./gone", "the model ./gone does not exist; give a model folder"),
        ("runs/004 --static page.html", "no file gone.txt; give another with --corpus"),
        ("runs/005 --static page.html", "the run's text came from standard input; give another with --corpus"),
        ("runs/006 --static page.html", "the run's text was split by evil.py:f, which is code; give another with"),
        ("--static page.html --corpus few.txt", "the text needs at least 6 different sentences; there are 1"),
    ],
)
def test_errors_are_one_line(
    arguments: str, message: str, run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"dog\n")))
    (trained / "few.txt").write_text("dog\ndog\n")
    for name, settings in (("4", {"corpus": "gone.txt"}), ("5", {"corpus": "-"}), ("6", {"sentences": "evil.py:f"})):
        (trained / "runs" / f"00{name}").mkdir()
        (trained / "runs" / f"00{name}" / "config.json").write_text(json.dumps(SETTINGS | settings))
        (trained / "runs" / f"00{name}" / "encoder").symlink_to(trained / "model")
    if not arguments.startswith(("r", ".")):
        arguments = f"runs/002 {arguments}"
    shown = run("explore", arguments)
    assert (shown.code, shown.out) == (2, "")
    assert message in shown.err.splitlines()[-1]
    assert not (trained / "page.html").exists()


def test_no_run_at_all(run: Run, place: Path) -> None:
    assert "there is no run in runs/; name a run folder, or train one" in run("explore", "--static page.html").err


def test_a_port_in_use_and_no_gradio_are_said_before_anything_is_read(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gradio" else name)
    assert "the page needs gradio: python -m pip install gradio;" in run("explore", "nothing").err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        shown = run("explore", f"nothing --port {port}")
    assert shown.code == 2
    assert re.fullmatch(rf".*error: port {port} cannot be used \(.*\); choose another: --port N\n", shown.err)


# ---------------------------------------------------------------------------------------------------------------
# The static page


@pytest.fixture
def page(trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of the newest run, without gradio."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # as the command sets its own
    explore(["--static", "page.html", "--device", "cpu", "--sentence", *SENTENCES])
    assert "wrote page.html" in capsys.readouterr().out
    return trained / "page.html"


def test_the_page_is_one_small_file_that_holds_all(page: Path) -> None:
    html = page.read_text("utf-8")
    assert len(html.encode()) < 1_000_000
    assert not re.search(
        r"""(src|href)=["'](?!data:)|@import|url\(|https?://(?!www.w3.org/2000/svg)""", html.replace("src=x", "")
    )
    assert html.count("</script>") == 2, "that of the sentence is escaped"
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert SCRIPT in data["texts"]
    assert (len(data["looks"]), data["ratios"][data["ratio"]], data["seeds"]) == (12, 0.6, 5)
    explorer, _ = load_explorer("runs/002", ExploreConfig(device="cpu"))
    look = data["looks"][3]
    for place in (0, 7, 31):
        choice = Choice(data["ratios"][place // 5], place % 5)
        (expected,) = json.loads(json.dumps(explorer.look(look["sentence"], [choice])["views"]))
        assert look["views"][place] == expected


def test_a_page_that_would_be_too_large_is_refused(trained: Path, run: Run) -> None:
    (trained / "long.txt").write_text("".join(f"{k} {'a dog ' * 4000}\n" for k in range(50)))
    shown = run("explore", "--static page.html --corpus long.txt --sentence dog --device cpu")
    assert "bytes, more than 1 MB; use a smaller --limit" in shown.err
    assert not (trained / "page.html").exists()


# ---------------------------------------------------------------------------------------------------------------
# In a browser


class Tab:
    """A page in Chromium. ``complaints``: errors of the console and addresses outside of this machine."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.complaints = page, list[str]()
        page.on("console", lambda line: self.complaints.extend([line.text] * (line.type == "error")))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda made: self.complaints.extend([made.url] * (not re.match(NEAR, made.url))))
        page.goto(url)
        page.wait_for_selector(".view circle", timeout=PATIENCE)

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.locator(f".view {selector}").all_text_contents()
        return found

    def wait(self, selector: str, condition: str, value: Any = None) -> None:
        """Wait until a condition in JavaScript on ``texts``, those of the selector, and ``value`` is true."""
        script = f"""([selector, value]) => {{
            const texts = [...document.querySelectorAll(selector)].map((found) => found.textContent);
            return {condition};
        }}"""
        try:
            self.page.wait_for_function(script, arg=[f".view {selector}", value], timeout=PATIENCE)
        except Exception as error:  # playwright's own kind
            raise AssertionError(f"{selector}: {condition} has not become true") from error

    def other(self, selector: str, old: list[str]) -> None:
        self.wait(selector, "JSON.stringify(texts) !== JSON.stringify(value)", old)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[str]:
    """The address at which the command serves, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPTS / "explore.py"), *arguments, "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert address is not None
            yield address[0]
        finally:
            process.terminate()
    assert process.returncode == 143


def move_the_sliders(tab: Tab, ratio: str, seed: str) -> None:
    """They move words; what the decoder writes, neighbours and the cross on the map follow."""
    stays, near = tab.texts(".stays"), tab.texts(".near")
    tab.page.locator(ratio).press("Home")
    tab.wait(".gone", "texts.length === 0")
    assert len(tab.texts(".stays")) > len(stays) > 0
    tab.other(".near", near)
    cross = tab.page.locator(".view path").first.get_attribute("d")
    tab.page.locator(ratio).press("End")
    tab.wait(".stays", "texts.length === 1")
    assert tab.page.locator(".view path").first.get_attribute("d") != cross
    few = tab.texts(".stays")
    for _ in range(3):
        tab.page.locator(seed).press("ArrowRight")
    tab.other(".stays", few)


def read_a_dot_with_a_script(tab: Tab) -> None:
    """In one call, so that no drawing comes in between."""
    texts = tab.page.locator(".view .map").first.evaluate("""map => [...map.querySelectorAll("circle")].map((dot) => {
        dot.dispatchEvent(new Event("click"));
        return map.querySelector(".note").textContent;
    })""")
    assert SCRIPT in texts
    assert len(set(texts)) > 20
    assert tab.page.locator(".view script, .view img").count() == 0
    assert tab.page.title() == TITLE


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_static_page_in_a_browser(width: int, page: Path, chromium: Any) -> None:
    tab = Tab(chromium.new_page(viewport={"width": width, "height": 844}), page.as_uri())
    move_the_sliders(tab, "#ratio", "#seed")
    near = tab.texts(".near")
    assert tab.page.locator("#sentence option").all_text_contents() == SENTENCES
    tab.page.locator("#sentence").select_option(index=SENTENCES.index(SCRIPT))
    tab.other(".near", near)
    read_a_dot_with_a_script(tab)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.complaints == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_served_page_in_a_browser(trained: Path, chromium: Any) -> None:
    with served("--sentence", *SENTENCES) as address:
        for width in (390, 1280):
            tab = Tab(chromium.new_page(viewport={"width": width, "height": 844}), address)
            move_the_sliders(tab, "#ratio input[type=range]", "#seed input[type=range]")
            near = tab.texts(".near")
            tab.page.locator("#sentence textarea").fill("an apple and a small guitar")
            tab.other(".near", near)
            near = tab.texts(".near")
            tab.page.locator("#sentence textarea").fill(SCRIPT)
            tab.other(".near", near)
            read_a_dot_with_a_script(tab)
            tab.page.locator("#sentence textarea").fill(" ")
            tab.wait(".note", "texts.length === 1 && texts[0] === 'the sentence has no words'")
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.complaints == []


@pytest.mark.browser
@pytest.mark.slow
def test_without_a_decoder_the_served_page_says_why(trained: Path, chromium: Any) -> None:
    (trained / "runs" / "002" / "decoder.safetensors").unlink()
    with served() as address:
        tab = Tab(chromium.new_page(), address)
        assert tab.texts(".written") == []
        assert "Not shown: runs/002 has no decoder.safetensors." in tab.texts(".note")
        assert tab.complaints == []
