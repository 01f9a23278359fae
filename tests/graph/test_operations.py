"""The operations of the whole graph in this process, and what it refuses to build."""

import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import graph
from deployments.decoding.image import decode
from deployments.errors import (
    BadParameter,
    BrokenImage,
    IdTaken,
    ModelUnavailable,
    NotAnImage,
    StartupError,
    UnknownId,
    UnknownSequence,
)
from deployments.limits import ImageLimits
from deployments.segmenter.thumbnails import make_thumbnail
from tests.support.documents import readme_example
from tests.support.graph.graph_in_process import arguments, call
from tests.support.page.verified import quad_of
from tests.support.paths import ROOT
from tests.support.photos.pictures import encode


def labels(photo):
    return [chunk.label for chunk in photo.chunks]


def part(data, box):
    """A part of a picture, as PNG."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).crop(box).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.slow
def test_the_graph_is_built_without_transformers():
    """It takes seconds to load, before any replica can start."""
    code = "import sys, graph; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_photo_becomes_a_record(inset, pictures):
    record = call(inset.record, "chelsea")
    assert record == call(inset.get, "chelsea")[0]
    assert record.filename == "chelsea.png"
    assert (record.width, record.height, record.media_type) == (451, 300, "image/png")
    assert record.sha256 == hashlib.sha256(pictures["chelsea"]).hexdigest()
    assert labels(record) == ["cat"] + [None] * (len(record.chunks) - 1)
    sources = [chunk.source for chunk in record.chunks]
    assert sources == ["detection"] + ["tile"] * (len(record.chunks) - 2) + ["whole"]
    assert len(sources) > 15
    assert record.chunks[-1].box == (0, 0, 451, 300)


def test_the_original_is_what_was_sent(inset, pictures):
    assert call(inset.get, "coffee")[1] == pictures["coffee"]


def test_a_photo_has_a_thumbnail(inset, pictures):
    for name, size in (("chelsea", (320, 213)), ("motorcycle", (320, 216))):
        thumbnail = call(inset.thumbnail, name)
        assert thumbnail == make_thumbnail(decode(pictures[name], ImageLimits()).pixels)
        assert Image.open(io.BytesIO(thumbnail)).size == size


def test_the_same_photo_again_changes_nothing(inset, pictures):
    before = call(inset.stats).store
    again = call(inset.index, pictures["coffee"], id="coffee", filename="other.png")
    assert (again.status, again.filename) == ("exists", "coffee.png")
    assert call(inset.stats).store == before


def test_an_object_finds_the_photo_it_was_cut_from(inset, pictures):
    for name, cut in (("coffee", (170, 12, 424, 303)), ("chelsea", (10, 0, 420, 298))):
        nearest, *others = call(inset.search, part(pictures[name], cut)).matches
        assert nearest.id == name
        np.testing.assert_allclose(nearest.box, cut, atol=15)
        assert {match.id for match in others} == pictures.keys() - {name}
        assert nearest.distance < others[0].distance / 2


def test_a_part_of_a_stored_photo_is_a_query(inset):
    (match,) = call(inset.search, id="chelsea", box=(0, 0, 451, 300), limit=1).matches
    assert (match.id, match.box, match.label) == ("chelsea", (0, 0, 451, 300), None)
    assert match.source == "whole"
    assert match.distance < 1e-3


def test_a_bit_that_is_no_object_is_found_by_a_tile(inset, pictures):
    """The saucer's edge and the table, of a photo in which only the cup is an object."""
    (tile, *_) = [c.box for c in call(inset.record, "coffee").chunks if c.source == "tile"]
    match = call(inset.search, part(pictures["coffee"], tile), verify="none").matches[0]
    assert (match.id, match.box, match.source, match.label) == ("coffee", tile, "tile", None)
    assert match.distance < 1e-3
    assert match.chunks[0].source == "tile"


CUP = (180, 20, 420, 300)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_part_is_verified_at_its_place_however_it_lies(inset, pictures, quarters, mirrored):
    image = Image.open(io.BytesIO(part(pictures["coffee"], CUP)))
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image
    answer = call(inset.search, encode(image.rotate(-90 * quarters, expand=True)))
    assert (answer.found, answer.texture) == (True, None)
    match, *others = answer.matches
    assert (match.id, match.verified, match.mirrored) == ("coffee", True, mirrored)
    assert not any(other.verified for other in others)
    expected = np.roll(quad_of(CUP, mirrored=mirrored), quarters, axis=0)
    np.testing.assert_allclose(match.quad, expected, atol=3)
    np.testing.assert_allclose(match.box, CUP, atol=4)
    # Turned, and then mirrored; here it was mirrored first.
    degrees = 90 * quarters * (-1 if mirrored else 1)
    assert abs((match.rotation - degrees + 180) % 360 - 180) < 1
    assert match.scale == pytest.approx(1, abs=0.02)
    assert match.coverage == pytest.approx(1, abs=0.02)


def test_a_part_of_a_photo_that_is_not_stored_is_not_found(inset, photos):
    data = part((photos / "rocket.jpg").read_bytes(), (250, 100, 450, 300))
    answer = call(inset.search, data)
    assert answer.found is False
    assert len(answer.matches) == 4
    assert all(match.verified is not True and match.quad is None for match in answer.matches)
    assert call(inset.search, data, verified=True).matches == []
    every = call(inset.search, data, verify="all")
    assert (every.found, {match.verified for match in every.matches}) == (False, {False})
    nobody = call(inset.search, data, verify="none")
    assert (nobody.found, {match.verified for match in nobody.matches}) == (None, {None})
    # What isn't verified is answered as it was ranked.
    ranked = [(match.id, match.distance, match.box) for match in nobody.matches]
    for one in (answer, every):
        assert [(match.id, match.distance, match.box) for match in one.matches] == ranked


def test_a_part_of_a_stored_photo_is_verified_in_it(inset):
    """But not all of it: that it is in itself goes without saying."""
    answer = call(inset.search, id="coffee", box=CUP, limit=1)
    (match,) = answer.matches
    assert (answer.found, match.id, match.part) == (True, "coffee", CUP)
    np.testing.assert_allclose(match.quad, quad_of(CUP), atol=3)
    itself = call(inset.search, id="coffee")
    assert (itself.found, itself.matches[0].id, itself.matches[0].verified) == (
        False,
        "coffee",
        None,
    )


def test_copies_are_listed_under_each_other(inset, pictures):
    call(inset.index, pictures["coffee"], id="again")
    try:
        query = part(pictures["coffee"], CUP)
        answer = call(inset.search, query, group="copies", limit=1)
        (match,) = answer.matches
        (copy,) = match.copies
        assert {match.id, copy.id} == {"coffee", "again"}
        assert (match.verified, copy.verified) == (True, True)
        assert copy.quad == match.quad
        assert [len(one.copies) for one in call(inset.search, query).matches] == [0] * 5
        others = call(inset.search, id="coffee", verified=True).matches
        assert [one.id for one in others] == ["again"]
    finally:
        call(inset.delete, "again")


def test_a_plain_query_is_not_looked_for(inset):
    answer = call(inset.search, encode(Image.new("RGB", (60, 50), "grey")))
    assert (answer.found, answer.texture) == (None, "too plain to verify")
    assert {match.verified for match in answer.matches} == {None}


def test_what_is_too_far_is_no_match(inset, pictures):
    matches = call(inset.search, pictures["coffee"], max_distance=0.001).matches
    assert [match.id for match in matches] == ["coffee"]
    assert [chunk.source for chunk in matches[0].chunks] == ["whole"]


def test_records_are_listed_in_pages(inset, pictures):
    first = call(inset.list, limit=3)
    rest = call(inset.list, after=first[-1].id)
    assert [record.id for record in first + rest] == sorted(pictures)


def test_a_deleted_photo_is_gone_at_once(inset, pictures):
    data = part(pictures["astronaut"], (0, 0, 200, 200))
    id = call(inset.index, data).id
    assert id == hashlib.sha256(data).hexdigest()
    assert call(inset.search, data).matches[0].id == id
    call(inset.delete, id)
    assert id not in [match.id for match in call(inset.search, data).matches]
    with pytest.raises(UnknownId, match=id[:12]):
        call(inset.get, id)


def test_metadata_is_kept_and_filtered_by(inset, pictures):
    """Before the limit: the only photo that fits is found, though others are nearer."""
    data = part(pictures["motorcycle"], (0, 0, 150, 150))
    metadata = {"year": 2024, "camera": "Canon EOS", "flash": False}
    created = call(inset.index, data, id="meta", metadata=metadata)
    assert created.metadata == call(inset.record, "meta").metadata == metadata
    again = call(inset.index, data, id="meta", metadata={"year": 1999})
    assert (again.status, again.metadata) == ("exists", metadata)
    assert call(inset.record, "coffee").metadata == {}

    def found(filter):
        return [
            match.id for match in call(inset.search, id="coffee", limit=1, filter=filter).matches
        ]

    assert found(()) == ["coffee"]
    assert found("year>=2024") == found(["camera=Canon EOS", "flash=false"]) == ["meta"]
    assert found(["year>=2024", "flash=true"]) == found("lens!=x") == []
    call(inset.delete, "meta")
    assert found("year>=2024") == []


def test_stats_say_what_is_loaded(inset, pictures):
    call(inset.check)
    stats = call(inset.stats)
    assert stats.store.photos == stats.chunk_index.photos == len(pictures)
    assert stats.store.chunks == stats.chunk_index.chunks
    assert (stats.segmenter, stats.encoder.name) == ("yolov5s", "models/compact")
    assert stats.encoder.text is False


def test_confidence_threshold_of_a_request(inset, pictures):
    found = []
    for number, threshold in enumerate((None, 0.5, 1.0)):
        id = f"threshold{number}"
        record = call(inset.index, pictures["coffee"], id=id, confidence_threshold=threshold)
        assert record.status == "created"
        assert labels(call(inset.record, id)) == labels(record)
        found.append([chunk.label for chunk in record.chunks if chunk.source == "detection"])
        call(inset.delete, id)
    assert found[0] == ["cup", "dining table", "spoon", "fork"]
    assert found[1] == ["cup"]
    assert found[2] == []


@pytest.mark.parametrize(
    ("operation", "args", "kwargs", "error"),
    [
        ("index", [b"no image"], {}, NotAnImage),
        ("index", [b""], {}, BrokenImage),
        ("index", [b"x"], {"id": "not/an/id"}, BadParameter),
        ("index", [b"x"], {"confidence_threshold": 1.5}, BadParameter),
        ("index", [b"x"], {"confidence_threshold": float("nan")}, BadParameter),
        ("index", [b"x"], {"metadata": {"year": None}}, BadParameter),
        ("index", [b"x"], {"metadata": "year"}, BadParameter),
        ("index", [b"x"], {"id": "coffee"}, IdTaken),
        ("search", [], {}, BadParameter),
        ("search", [b"x"], {"id": "coffee"}, BadParameter),
        ("search", [], {"text": "a cup"}, BadParameter),
        ("search", [], {"text": "a cup", "box": (0, 0, 1, 1)}, BadParameter),
        ("search", [b"no image"], {}, NotAnImage),
        ("search", [], {"id": "nobody"}, UnknownId),
        ("search", [], {"id": "coffee", "box": (600, 0, 700, 10)}, BadParameter),
        ("search", [], {"id": "coffee", "limit": 0}, BadParameter),
        ("search", [], {"id": "coffee", "limit": 1001}, BadParameter),
        ("search", [], {"id": "coffee", "max_distance": 2.1}, BadParameter),
        ("search", [], {"id": "coffee", "verify": "some"}, BadParameter),
        ("search", [], {"id": "coffee", "group": "all"}, BadParameter),
        ("search", [], {"id": "coffee", "verify": "none", "verified": True}, BadParameter),
        ("search", [], {"text": "a cup", "verified": True}, BadParameter),
        ("search", [], {"id": "coffee", "filter": "year"}, BadParameter),
        ("search", [], {"id": "coffee", "filter": ""}, BadParameter),
        ("search", [], {"id": "coffee", "filter": ["a=1"] * 17}, BadParameter),
        ("search", [], {"id": "coffee", "min_sequence": 10**6}, UnknownSequence),
        ("get", ["nobody"], {}, UnknownId),
        ("get", ["../coffee"], {}, BadParameter),
        ("record", ["nobody"], {}, UnknownId),
        ("list", [], {"limit": 0}, BadParameter),
        ("list", [], {"after": "a b"}, BadParameter),
        ("delete", ["nobody"], {}, UnknownId),
    ],
)
def test_errors_are_our_own(inset, operation, args, kwargs, error):
    with pytest.raises(error) as caught:
        call(getattr(inset, operation), *args, **kwargs)
    assert caught.value.detail


def test_a_mistake_in_the_config_ends_the_build(tmp_path, capsys):
    with pytest.raises(StartupError, match=r"segmenter\.conf is not an option"):
        graph.build({"segmenter": {"conf": 0.5}})
    assert "Inset can't start: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"segmenter": {"model_name_or_path": "no-such-detector"}},
        {"encoder": {"pretrained_model_name_or_path": "tests"}},
    ],
)
def test_a_model_that_is_none_ends_the_build(tmp_path, changes):
    ((name,),) = (options.values() for options in changes.values())
    with pytest.raises(ModelUnavailable, match=name):
        graph.build(arguments(tmp_path, changes))


@pytest.mark.slow
def test_the_plain_classes_example_of_the_readme(pictures, tmp_path, monkeypatch, capsys):
    """As it is printed there, in a folder with a photo."""
    example = readme_example("PhotoEncoder(")
    (tmp_path / "photo.jpg").write_bytes(pictures["coffee"])
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "label='cup'" in printed
    assert "['photo.jpg']" in printed
