"""What scripts/search.py and the demo print and draw of an answer."""

from __future__ import annotations

import sys

import httpx
import numpy as np
import pytest
import search
from common.answers import list_answer, notice
from common.client import RequestFailed
from common.client import search as ask
from common.drawing import BEST, MARGIN, OTHER, TILE, draw_matches
from PIL import Image, ImageColor

from tests.support.page.verified import answer_of, quad_of, verify
from tests.support.photos.pictures import encode, pixels

PHOTO = (300, 200)
BOX = [100, 50, 200, 150]


def match(id: str, distance: float, **more):
    chunk = {"box": BOX, "source": "tile", "distance": distance, "label": None}
    nearest = {"box": BOX, "source": "tile", "label": None}
    photo = {"filename": f"{id}.png", "width": PHOTO[0], "height": PHOTO[1], "url": f"/images/{id}"}
    return {"id": id, "distance": distance, "chunks": [chunk], **nearest, **photo, **more}


def found(id: str = "a", part=(0, 0, 100, 100), turns=0, mirrored=False, **more):
    quad = quad_of(BOX, turns=turns, mirrored=mirrored)
    return verify(match(id, 0.1, **more), quad, list(part), turns=turns, mirrored=mirrored)


def test_what_was_found_is_listed_before_what_looks_alike():
    answer = answer_of([match("b", 0.05), found(turns=1, mirrored=True), match("c", 0.2)], True)
    lines = list_answer(answer, "3 photos").splitlines()
    assert lines[0] == "Found in 1 photo:"
    assert lines[1].split() == ["agreeing", "corners", "noticed", "photo"]
    # It was mirrored and turned: its top left corner is the bottom right one of its place.
    expected = "1 40 200,150 200,50 100,50 100,150 mirrored, turned by 90° a.png"
    assert lines[2].split() == expected.split()
    assert lines[3] == "These look alike:"
    assert [line.split()[0] for line in lines[5:]] == ["2", "3"]
    assert lines[4].index("photo") == lines[5].index("b.png") == lines[6].index("c.png")


@pytest.mark.parametrize(
    ("matches", "found", "texture", "first"),
    [
        ([match("b", 0.1)], False, None, "Not found among 628 photos. These look alike:"),
        ([], False, None, "Not found among 628 photos."),
        (
            [match("b", 0.1)],
            None,
            "too plain to verify",
            "The picture is too plain to verify. These look alike:",
        ),
        ([], None, None, "No photo matches."),
    ],
)
def test_what_was_not_found_is_said(matches, found, texture, first):
    text = list_answer(answer_of(matches, found, texture=texture), "628 photos")
    assert text.splitlines()[0] == first
    assert ("b.png" in text) == bool(matches)


def test_where_no_photo_was_looked_at_there_is_one_list():
    lines = list_answer(answer_of([match("b", 0.1)], None), "628 photos").splitlines()
    assert lines[0].split() == ["distance", "box", "what", "photo"]
    assert lines[1].split() == ["1", "0.100", "100,50,200,150", "part", "b.png"]


def test_copies_stand_below_their_match():
    first = found() | {"copies": [match("copy", 0.1)]}
    lines = list_answer(answer_of([first, match("b", 0.3, copies=[match("c", 0.3)])], True), "")
    assert lines.startswith("Found in 2 photos:")
    rows = [line.split()[-1] for line in lines.splitlines()]
    assert rows[2:4] == ["a.png", "copy.png"]
    assert rows[6:] == ["b.png", "c.png"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "all of it"),
        ({"rotation": 4.9, "scale": 1.2, "coverage": 0.96}, "all of it"),
        ({"coverage": 0.52}, "half of it"),
        ({"coverage": 0.8}, "80% of it"),
        ({"coverage": 0.001}, "1% of it"),
        ({"mirrored": True, "rotation": -88.6}, "mirrored, turned by 90°"),
        ({"rotation": -179.4}, "turned by 180°"),
        ({"rotation": 36.6}, "turned by 37°"),
        ({"scale": 3.0}, "3 x larger here"),
        ({"scale": 0.4}, "2.5 x smaller here"),
        ({"scale": 14.2}, "14 x larger here"),
    ],
)
def test_what_is_worth_a_word(changes, words):
    assert ", ".join(notice(found() | {"scale": 1.0} | changes)) == words


def test_what_was_cut_off_the_query_counts_as_not_found():
    """As far as the size of the query is known."""
    framed = found(part=(0, 50, 100, 150))
    assert notice(framed) == ["all of it"]
    assert notice(framed, (100, 200)) == ["half of it"]
    assert notice(framed, (100, 100)) == ["all of it"]


def colours(sheet: Image.Image, column: int) -> set[tuple[int, ...]]:
    """The colours of a tile's photo."""
    left = MARGIN + column * (TILE + MARGIN)
    tile = sheet.crop((left, MARGIN, left + TILE, MARGIN + TILE))
    return {tuple(colour) for colour in np.asarray(tile).reshape(-1, 3)}


def test_the_quad_is_drawn_and_boxes_elsewhere():
    photo = encode(Image.new("RGB", PHOTO, "black"))
    turned = found()
    turned["quad"] = [[150, 40], [220, 110], [150, 180], [80, 110]]
    answer = answer_of([turned, match("b", 0.2)], True)
    sheet = draw_matches(pixels("query", 60, 40), answer, lambda url: photo)
    best = ImageColor.getrgb(BEST)
    assert best in colours(sheet, 1)
    assert best not in colours(sheet, 2)
    # The quad's corners are on the lines, and those of its bounds are not.
    corner = MARGIN + TILE + MARGIN, MARGIN + TILE - PHOTO[1]
    for x, y in turned["quad"]:
        assert sheet.getpixel((corner[0] + x, corner[1] + y)) == best
    assert sheet.getpixel((corner[0] + 80, corner[1] + 40)) == (0, 0, 0)
    # Where no photo was looked at, the nearest chunk is drawn as what was found.
    alike = answer_of([match("b", 0.2)], None)
    assert best in colours(draw_matches(pixels("query"), alike, lambda url: photo), 1)
    assert ImageColor.getrgb(OTHER) not in colours(sheet, 2)


class Service:
    """Answers like the service, and remembers what it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        path = request.url.path
        answers = {"/search": self.answer, "/stats": {"store": {"photos": 628}}}
        if path in answers:
            content = {"json": answers[path]}
        else:
            content = {"content": encode(pixels("stored", *PHOTO))}
        return httpx.Response(200, **content)


@pytest.fixture
def service(answers):
    return answers(Service(answer_of([match("b", 0.1)], False)))


def test_options_are_passed_on_and_the_answer_is_printed_and_drawn(
    service, tmp_path, monkeypatch, capsys
):
    query = tmp_path / "query.png"
    query.write_bytes(encode(pixels("query")))
    drawn = tmp_path / "answer.png"
    arguments = ["--verify", "all", "--verified", "--group", "copies", "--picture", str(drawn)]
    monkeypatch.setattr(sys, "argv", ["search.py", str(query), *arguments])
    assert search.main() == 0
    assert dict(service.asked[0].url.params) == {
        "limit": "10",
        "max_distance": "2.0",
        "verify": "all",
        "verified": "true",
        "group": "copies",
    }
    assert capsys.readouterr().out.startswith("Not found among 628 photos. These look alike:\n")
    with Image.open(drawn) as picture:
        assert picture.width > 2 * TILE


def test_what_was_searched_is_said(service, tmp_path, monkeypatch, capsys):
    query = tmp_path / "query.png"
    query.write_bytes(encode(pixels("query")))
    monkeypatch.setattr(
        sys, "argv", ["search.py", str(query), "--filter", "a=1", "--max-distance", "1"]
    )
    assert search.main() == 0
    sentence = "Not found among the photos that match the filter and are so near."
    assert capsys.readouterr().out.startswith(sentence)


def test_a_refusal_is_an_error(answers):
    detail = "limit must be from 1 to 1000, not 0."
    answers(lambda request: httpx.Response(400, json={"detail": detail}))
    with pytest.raises(RequestFailed, match="limit must be"):
        ask("http://localhost", b"query", limit=0)
