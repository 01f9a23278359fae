"""Searching over HTTP: what is found, where, and in which order."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.photos.exif import SAID, of_a_phone
from tests.support.photos.geometry import overlap
from tests.support.photos.pictures import encode, picture, pixels
from tests.support.running.waiting import together
from tests.support.service.http_client import PNG, index, problem, search
from tests.support.service.services import LIMITS


@pytest.mark.parametrize(
    ("name", "label"),
    [("coffee.png", "cup"), ("chelsea.png", "cat"), ("motorcycle_left.png", "motorcycle")],
)
def test_a_crop_of_an_object_finds_its_photo_and_shows_where(client, photos, library, name, label):
    """Cut beside the box, scaled and compressed: nothing is the same but what is seen."""
    record = library[name]
    chunk = next(chunk for chunk in record["chunks"] if chunk["label"] == label)
    x1, y1, x2, y2 = chunk["box"]
    dx, dy = 0.04 * (x2 - x1), 0.04 * (y2 - y1)
    region = (x1 + dx, y1 + dy, min(x2 + dx, record["width"]), min(y2 + dy, record["height"]))
    with Image.open(photos / name) as photo:
        crop = photo.convert("RGB").crop(tuple(map(round, region)))
    query = encode(crop.resize((crop.width * 2 // 3, crop.height * 2 // 3)), "JPEG", quality=70)

    first, second = search(client, query)[:2]
    assert (first["id"], first["filename"]) == (record["id"], name)
    assert (first["width"], first["height"]) == (record["width"], record["height"])
    assert first["url"] == f"/images/{record['id']}"
    assert overlap(first["box"], region) > 0.7
    assert first["distance"] < second["distance"]


def test_a_match_has_its_chunks_nearest_first(client, photos, library):
    record = library["astronaut.png"]
    data = (photos / "astronaut.png").read_bytes()
    match = search(client, data, limit=1, max_chunks=1000, verify="none")[0]
    assert match["id"] == record["id"]
    assert match["distance"] < 0.01
    assert sorted(chunk["box"] for chunk in match["chunks"]) == sorted(
        chunk["box"] for chunk in record["chunks"]
    )
    distances = [chunk["distance"] for chunk in match["chunks"]]
    assert distances == sorted(distances)
    nearest = match["chunks"][0]
    assert nearest.items() <= match.items()
    assert (
        search(client, data, limit=1, max_chunks=3, verify="none")[0]["chunks"]
        == match["chunks"][:3]
    )
    assert search(client, data, limit=1, verify="none")[0]["chunks"] == match["chunks"][:5]


def test_the_ways_to_ask_agree(client, photos, library):
    """The body, a part and the id of the same picture; with a box too."""
    data = (photos / "rocket.jpg").read_bytes()
    id = library["rocket.jpg"]["id"]
    # A whole stored photo isn't looked for in itself, as the same bytes are.
    for box in ({"verify": "none"}, {"box": "50,60,350.5,400"}):
        by_body = search(client, data, **box)
        by_id = search(client, id=id, **box)
        by_part = client.post("/search", files=[("file", ("q", data))], params=box)
        assert by_body == by_id == by_part.json()["matches"]
    whole, part = search(client, id=id), search(client, id=id, box="0,0,100,100")
    assert whole[0]["distance"] < 0.001 < part[0]["distance"]


def test_a_box_asks_for_a_part_of_the_picture(client, library):
    """The object's own box is the very crop that was indexed."""
    record = library["coffee.png"]
    cup = record["chunks"][0]
    box = ",".join(map(str, cup["box"]))
    match = search(client, id=record["id"], box=box, limit=1, verify="none")[0]
    assert (match["id"], match["box"], match["label"]) == (record["id"], cup["box"], "cup")
    assert match["distance"] < 0.001


def test_a_part_is_verified_in_its_photo_and_nowhere_else(client, photos, library):
    """Mirrored, and sent as a JPEG."""
    box = (180, 20, 420, 300)
    with Image.open(photos / "coffee.png") as photo:
        crop = photo.convert("RGB").crop(box).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    query = encode(crop, "JPEG", quality=80)
    id = library["coffee.png"]["id"]

    response = client.post("/search", content=query, headers=PNG, params={"verify": "all"})
    answer = response.json()
    assert (answer["found"], answer["texture"]) == (True, None)
    first, *others = answer["matches"]
    assert (first["id"], first["verified"], first["mirrored"]) == (id, True, True)
    corners = [[420, 20], [180, 20], [180, 300], [420, 300]]
    np.testing.assert_allclose(first["quad"], corners, atol=4)
    np.testing.assert_allclose(first["box"], box, atol=5)
    assert first["part"] == [0, 0, *crop.size]
    assert abs(first["rotation"]) < 1
    assert first["scale"] == pytest.approx(1, abs=0.03)
    assert first["inliers"] >= 16
    assert 0.95 < first["coverage"] <= 1
    assert {match["verified"] for match in others} <= {False}
    assert {match["quad"] for match in others} <= {None}
    distances = [match["distance"] for match in others]
    assert distances == sorted(distances)

    assert [match["id"] for match in search(client, query, verified=True)] == [id]
    by_distance = search(client, query, verify="none")
    assert {match["verified"] for match in by_distance} == {None}


def test_copies_are_answered_as_one(client, photos, library):
    data = (photos / "chelsea.png").read_bytes()
    ids = {library["chelsea.png"]["id"], index(client, data, id="chelsea-again")["id"]}
    with Image.open(photos / "chelsea.png") as photo:
        query = encode(photo.convert("RGB").crop((60, 20, 320, 290)))
    (match,) = search(client, query, verified=True, group="copies")
    assert {match["id"], *(copy["id"] for copy in match["copies"])} == ids
    assert all(copy["verified"] for copy in match["copies"])
    assert client.delete("/images/chelsea-again").status_code == 204


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"verify": "some"}, "verify=some"),
        ({"verified": "perhaps"}, "verified=perhaps"),
        ({"group": "all"}, "group=all"),
        ({"verified": "true", "verify": "none"}, "verify=none"),
    ],
)
def test_what_cant_be_verified_is_refused(client, library, parameters, named):
    id = library["coffee.png"]["id"]
    assert named in problem(client.post("/search", params={"id": id, **parameters}), 400)


def test_answers_are_limited_sorted_and_without_repetition(client, library):
    query = {"id": library["camera.png"]["id"], "verify": "none"}
    everything = search(client, **query, limit=1000)
    assert len(everything) == client.get("/stats").json()["store"]["photos"]
    order = [(match["distance"], match["id"]) for match in everything]
    assert order == sorted(order)
    assert len({match["id"] for match in everything}) == len(everything)
    assert search(client, **query, limit=3) == everything[:3]
    assert search(client, **query) == everything[:10]


def test_chunks_beyond_max_distance_do_not_count(client, library):
    query = {"id": library["camera.png"]["id"], "verify": "none"}
    everything = search(client, **query, limit=1000)
    bound = everything[len(everything) // 2]["distance"]
    within = search(client, **query, limit=1000, max_distance=bound)
    expected = [match["id"] for match in everything if match["distance"] <= bound]
    assert [match["id"] for match in within] == expected
    assert 0 < len(within) < len(everything)
    assert all(chunk["distance"] <= bound for match in within for chunk in match["chunks"])


def test_a_filter_comes_before_the_limit(client):
    """So the photos that fit are found though many others are nearer."""

    def add(number: int) -> None:
        camera = "Canon EOS" if number % 2 else "Nikon"
        metadata = {"shelf": "filtered", "year": 2010 + number, "camera": camera, "n": number / 4}
        data, parameters = picture(f"filtered {number}"), {"metadata": json.dumps(metadata)}
        assert index(client, data, id=f"f-{number}", **parameters)["metadata"] == metadata
        assert client.get(f"/images/f-{number}/record").json()["metadata"] == metadata

    together([lambda number=number: add(number) for number in range(8)])

    def found(*conditions: str, **parameters: Any) -> list[str]:
        matches = search(client, id="f-0", filter=["shelf=filtered", *conditions], **parameters)
        return [match["id"] for match in matches]

    everything = found(limit=100)
    assert sorted(everything) == [f"f-{number}" for number in range(8)]
    for conditions, numbers in [
        (["year>=2014", "camera=Canon EOS"], {5, 7}),
        (['camera!="Nikon"', "n<0.8"], {1, 3}),
        (["lens=50mm"], set()),
    ]:
        expected = [id for id in everything if int(id[2:]) in numbers]
        assert found(*conditions, limit=3) == expected
        assert found(*conditions, limit=1) == expected[:1]


def test_what_photos_say_of_themselves_is_filtered_by(client):
    """Dates by their beginnings; and what the client says wins."""
    for id, date in (("may", "2024:05:17 10:12:33"), ("june", "2024:06:01 00:00:00")):
        photo = encode(pixels(f"of {id}"), "JPEG", exif=of_a_phone(DateTimeOriginal=date))
        metadata = {"shelf": "facts", "lens": "mine"} if id == "june" else {"shelf": "facts"}
        image = index(client, photo, id=id, metadata=json.dumps(metadata))
        assert (
            image["metadata"] == {**SAID, "date_taken": image["metadata"]["date_taken"]} | metadata
        )
        assert image["asked"] == [name for name in SAID if name not in metadata]
        assert client.get(f"/images/{id}/record").json()["metadata"] == image["metadata"]

    def found(*conditions: str) -> set[str]:
        matches = search(client, id="may", filter=["shelf=facts", *conditions])
        return {match["id"] for match in matches}

    for conditions, expected in [
        (["date_taken>=2024-05"], {"may", "june"}),
        (["date_taken>=2024-05", "date_taken<2024-06"], {"may"}),
        (["date_taken>2024-05-17T10:12:34"], {"june"}),
        (["camera=Canon EOS R5", "lens=mine"], {"june"}),
        (["latitude>48", "latitude<48.2", "longitude>-12", "longitude<-11.5"], {"may", "june"}),
        (["longitude>0"], set()),
    ]:
        assert found(*conditions) == expected, conditions


def test_metadata_comes_as_a_part_too(client):
    parts = [("file", (f"{number}.png", picture(f"part meta {number}"))) for number in range(2)]
    metadata = {"album": "für Élise 🎹", "private": True}
    response = client.post("/index", files=parts, data={"metadata": json.dumps(metadata)})
    assert response.status_code == 201
    images = response.json()["images"]
    assert [image["metadata"] for image in images] == [metadata] * 2
    found = search(client, picture("part meta"), filter="album=für Élise 🎹")
    assert sorted(match["id"] for match in found) == sorted(image["id"] for image in images)


def test_metadata_of_a_photo_that_exists_stays(client):
    first = index(client, picture("kept meta"), metadata='{"year": 2024}')
    second = index(client, picture("kept meta"), metadata='{"year": 1999}')
    assert (second["status"], second["metadata"]) == ("exists", first["metadata"])
    assert second["sequence"] == first["sequence"]


def test_a_search_right_after_indexing_finds_it(client):
    for number in range(5):
        data = picture(f"right after {number}")
        image = index(client, data)
        match = search(client, data, limit=1)[0]
        assert match["id"] == image["id"]
        assert match["distance"] < 0.001


def test_a_search_may_say_what_it_must_know(client):
    data = picture("must know")
    image = index(client, data)
    match = search(client, data, limit=1, min_sequence=image["sequence"])[0]
    assert match["id"] == image["id"]


def test_a_search_for_a_change_that_has_not_happened_is_refused_at_once(client):
    """And not held for as long as requests may take."""
    sequence = client.get("/stats").json()["store"]["sequence"] + 1000
    start = time.monotonic()
    response = client.post(
        "/search", params={"min_sequence": sequence}, content=picture("future"), headers=PNG
    )
    assert time.monotonic() - start < LIMITS["timeout_s"]
    assert str(sequence) in problem(response, 400)


def test_searching_by_text_needs_an_encoder_with_a_text_tower(client):
    assert client.get("/stats").json()["encoder"]["text"] is False
    detail = problem(client.post("/search", params={"text": "a red balloon"}), 400)
    assert "no text tower" in detail
    assert "search by a picture" in detail
