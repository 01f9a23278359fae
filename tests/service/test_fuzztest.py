"""The fuzz test, in short."""

from __future__ import annotations

from fuzz.corpus import build_corpus
from fuzz.damage import damaged_file
from fuzztest import fuzz

HURT = (
    "bombs/jp2-256-megapixels",
    "bombs/tiff-16x16-in-a-tile-of-46000",
    "cut/gif-in-its-second-frame-9",
    "metadata/png-ztxt-of-a-gigabyte",
)


def test_files_that_hurt_cost_nobody_else_anything(service, tmp_path):
    files = {file.name: file.data for file in build_corpus() if file.name in HURT}
    files |= {(file := damaged_file(0, number)).name: file.data for number in range(20)}
    for name, data in files.items():
        (tmp_path / name.replace("/", "-")).write_bytes(data)
    report = fuzz(tmp_path / "blamed", service=service, repeat=sorted(tmp_path.iterdir()))
    assert report.violations == []
    assert report.answers.total() == 3 * (len(HURT) + 20)
    assert any("of which 0 were lost" in note for note in report.notes)
    assert str(report).endswith("No file did any harm.")
