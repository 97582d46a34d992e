"""The two pages of ``tsdae explore``: one that is served by gradio, and one file that needs no server.

Both draw by page.js, which puts every text in by textContent, and fetch nothing from elsewhere.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from tsdae.explore.views import Choice, Explorer
from tsdae.utils.files import atomic
from tsdae.utils.progress import progress_bar

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"
FOLDER = Path(__file__).parent
RATIOS = [ratio / 10 for ratio in range(10)]  # of the static page
SEEDS = range(5)
LARGEST = 1_000_000  # bytes of the static page
COLUMN = "max-width: 62rem; margin: 0 auto"
TITLE = "What does a sentence vector hold?"
ABOUT = (
    "Words of the sentence are deleted. The encoder turns what is left into one vector. From this vector alone the "
    "decoder writes the sentence, and by it the nearest sentences of the text are found."
)


def write_page(path: Path, explorer: Explorer, sentences: Sequence[str], ratio: float) -> None:
    """Write one HTML file in which all is computed: each sentence under 10 ratios and 5 seeds.

    ratio: where the slider starts. ValueError if the file would be larger than 1 MB.
    """
    choices = [Choice(ratio, seed) for ratio in RATIOS for seed in SEEDS]
    looks = []
    with progress_bar(len(sentences), "computing the page", "sentence") as bar:
        for text in sentences:
            looks.append({"sentence": text} | explorer.look(text, choices))
            bar.update()
    start = min(range(len(RATIOS)), key=lambda place: abs(RATIOS[place] - ratio))
    data = {"ratios": RATIOS, "seeds": len(SEEDS), "ratio": start, "looks": looks}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    parts: dict[str, Any] = {name: (FOLDER / f"page.{name}").read_text("utf-8") for name in ("css", "js")}
    template = environment.from_string((FOLDER / "page.html").read_text("utf-8"))
    page = template.render(title=TITLE, about=ABOUT, data=explorer.background() | data, **parts).encode()
    if len(page) > LARGEST:
        raise ValueError(f"the page would take {len(page):,} bytes, more than 1 MB; use a smaller --limit")
    with atomic(path) as staged:
        staged.write_bytes(page)


def served_page(explorer: Explorer, sentences: Sequence[str], ratio: float) -> gradio.Blocks:
    """Return the page that computes while one types. ValueError of a sentence is shown in place of the drawing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import
    import gradio as gr

    def look(sentence: str, ratio: float, seed: float) -> dict[str, Any]:
        try:
            found = explorer.look(sentence, [Choice(ratio, int(seed))])
        except ValueError as error:
            return {"message": str(error)}
        return {"words": found["words"]} | found["views"][0]

    script = (FOLDER / "page.js").read_text("utf-8")
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n{ABOUT}")
        sentence = gr.Textbox(sentences[0], label="Sentence", max_length=500, elem_id="sentence")
        picked = gr.Dropdown([*sentences], label="Or one of these", elem_id="picked")
        picked.input(lambda text: text, picked, sentence, show_progress="hidden", api_visibility="private")
        with gr.Row():
            share = gr.Slider(0, 0.95, ratio, step=0.05, label="Deletion ratio", elem_id="ratio")
            seed = gr.Slider(0, 99, 0, step=1, label="Seed", elem_id="seed")
        view = gr.HTML(
            look(sentences[0], ratio, 0),
            html_template='<div class="view"></div>',
            css_template=(FOLDER / "page.css").read_text("utf-8"),
            js_on_load=f"{script}\nconst show = () => drawView(element.querySelector('.view'), props.value, "
            "props.background);\nshow();\nwatch('value', show);",
            background=explorer.background(),
        )
        inputs: list[Any] = [sentence, share, seed]
        gr.on(
            [part.change for part in inputs], look, inputs, view, show_progress="hidden", trigger_mode="always_last",
            api_visibility="private",
        )  # fmt: skip
    return page


def serve(explorer: Explorer, sentences: Sequence[str], ratio: float, port: int) -> None:
    """Serve the page on 127.0.0.1 alone until the program is stopped."""
    page = served_page(explorer, sentences, ratio)
    page.launch(
        server_name=HOST, server_port=port, share=False, prevent_thread_lock=True, quiet=True, ssr_mode=False,
        footer_links=[], enable_monitoring=False, css=f".gradio-container {{ {COLUMN} }}",
    )  # fmt: skip
    print(f"open http://{HOST}:{port} in a browser; Ctrl-C stops it", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)
