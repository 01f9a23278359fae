"""Tables in documents: only what is between the two comments changes."""

import argparse

import pytest
from common.tables import markdown, table_place, write_table

DOCUMENT = """# Figures

<!-- one: written by a command -->
old
<!-- end one -->

<!-- two: written by a command -->
<!-- end two -->

The end.
"""


@pytest.fixture
def document(tmp_path):
    file = tmp_path / "figures.md"
    file.write_text(DOCUMENT)
    return file


def test_a_table_is_written_where_it_belongs(document):
    table = markdown(["a", "b"], [["1", "2"]])
    for _ in range(2):  # the second time it replaces itself
        write_table(f"{document}#one", table)
    assert document.read_text() == DOCUMENT.replace("old\n", f"\n{table}\n\n")
    write_table(f"{document}#two", "x")
    assert "a command -->\n\nx\n\n<!-- end two -->\n\nThe end." in document.read_text()


@pytest.mark.parametrize("name", ["three", "", "end one"])
def test_a_place_that_is_missing_is_an_error_before_anything_is_measured(document, name):
    with pytest.raises(argparse.ArgumentTypeError, match=f"no place '{name}'"):
        table_place(f"{document}#{name}")
    with pytest.raises(ValueError, match="no place"):
        write_table(f"{document}#{name}", "x")
    assert document.read_text() == DOCUMENT


def test_a_document_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(argparse.ArgumentTypeError, match="No such file"):
        table_place(f"{tmp_path / 'none.md'}#one")
