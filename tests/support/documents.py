"""The Python examples of the README."""

from __future__ import annotations

import re

from tests.support.paths import ROOT


def readme_example(contains: str) -> str:
    """Return the one Python example of the README that contains some words."""
    text = (ROOT / "README.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    (example,) = [example for example in examples if contains in example]
    return example
