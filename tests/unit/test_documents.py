"""The documents: their links lead somewhere, and their examples are Python that imports."""

import ast
import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "models").glob("*/*.md")]
)
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in DOCUMENTS}
EXAMPLES = [
    pytest.param(code, id=f"{name}-{number}")
    for name, text in TEXTS.items()
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", without_code, re.M)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str):
    folder = (ROOT / name).parent
    for link in LINK.findall(TEXTS[name]):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_import_what_there_is(code: str):
    """They are run as they are in tests/graph and tests/service."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):  # it may be a module that nobody imported yet
                    importlib.import_module(f"{node.module}.{alias.name}")


def unit_of_systemd() -> str:
    """Return the unit that docs/operations.md shows."""
    (unit,) = re.findall(r"^```ini\n(.*?)^```", TEXTS["docs/operations.md"], re.M | re.S)
    return unit


def test_systemd_stops_the_service_as_ctrl_c_does():
    """Only its first process gets the signal, or requests would be cut off."""
    settings = dict(line.split("=", 1) for line in unit_of_systemd().splitlines() if "=" in line)
    assert settings["ExecStart"].endswith("scripts/serve.py")  # which heeds any signal
    assert settings["KillMode"] == "mixed"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_reads_the_unit(tmp_path: Path):
    file = tmp_path / "inset.service"
    here = unit_of_systemd().replace("/opt/inset", str(ROOT)).replace("User=inset", "User=root")
    file.write_text(here)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True
    )
    complaints = [line for line in checked.stderr.splitlines() if file.name in line]
    assert (checked.returncode, complaints) == (0, [])


def test_the_readme_has_examples():
    assert len([example for example in EXAMPLES if str(example.id).startswith("README")]) == 2
