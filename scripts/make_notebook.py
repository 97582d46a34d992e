"""Makes scripts/walkthrough.ipynb from scripts/walkthrough.py, whose `# %%` lines begin the cells.

python scripts/make_notebook.py            writes it
python scripts/make_notebook.py --check    exits with 1 if the notebook that lies there differs
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent / "walkthrough.py"
NOTEBOOK = SOURCE.with_suffix(".ipynb")
CODE, TEXT = "# %%", "# %% [markdown]"
# Two cells before those of the script. ADDRESS: of the repository. The constraint keeps the torch that Colab has, which
# fits its GPU.
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/ADDRESS/blob/main/scripts/walkthrough.ipynb)"
)
PREPARE = """\
# For Google Colab: installs the package, unless it is there; of a clone or an upload below this folder, or from git.
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", message="IProgress not found")  # without ipywidgets progress bars are plain text
if "google.colab" in sys.modules and importlib.util.find_spec("tsdae") is None:
    places = [Path.cwd(), *Path.cwd().glob("*"), *Path.cwd().glob("*/*")]
    found = [path for path in places if (path / "pyproject.toml").is_file() and (path / "tsdae").is_dir()]
    source = f"{found[0]}[plots]" if found else "tsdae-torch[plots] @ git+https://github.com/ADDRESS"
    Path("constraints.txt").write_text(f"torch=={importlib.metadata.version('torch')}\\n")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt"]
    subprocess.run([*command, source], check=True)
"""


def address() -> str:
    """Return OWNER/NAME of the repository on GitHub, from the project's URLs; placeholders where none is given."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    url: str = project.get("urls", {}).get("Repository", f"https://github.com/OWNER/{project['name']}")
    return url.removeprefix("https://github.com/").removesuffix("/").removesuffix(".git")


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes scripts/walkthrough.ipynb from walkthrough.py.")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the notebook differs from the script")
    arguments = parser.parse_args()
    made = notebook(SOURCE.read_text(encoding="utf-8"))
    if not arguments.check:
        NOTEBOOK.write_text(made, encoding="utf-8")
        return 0
    if NOTEBOOK.is_file() and NOTEBOOK.read_text(encoding="utf-8") == made:
        print(f"{NOTEBOOK.name} is made from {SOURCE.name} as it stands")
        return 0
    print(f"{NOTEBOOK.name} differs from {SOURCE.name}; run python scripts/make_notebook.py and commit what it writes")
    return 1


def notebook(script: str) -> str:
    """The script as a notebook without outputs: nbformat 4.4, the last that needs no random cell ids."""
    badge, prepare = (text.replace("ADDRESS", address()).splitlines() for text in (BADGE, PREPARE))
    cells: list[tuple[bool, list[str]]] = [(True, badge), (False, prepare)]
    for line in script.splitlines():
        if line in (CODE, TEXT):
            cells.append((line == TEXT, []))
        else:
            cells[-1][1].append(line)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    made = {"cells": [cell(*parts) for parts in cells], "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(made, ensure_ascii=False, indent=1) + "\n"


def cell(is_text: bool, lines: list[str]) -> dict[str, Any]:
    """A cell in nbformat's form: a list of lines, all but the last with their line break."""
    if is_text:
        lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
    source = "\n".join(lines).strip("\n").splitlines(keepends=True)
    if is_text:
        return {"cell_type": "markdown", "metadata": {}, "source": source}
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}


if __name__ == "__main__":
    sys.exit(main())
