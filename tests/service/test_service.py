"""The service as a client sees it: HTTP in, HTTP out, and the handles for Python."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.documents import readme_example
from tests.support.photos.exif import SAID, of_a_phone
from tests.support.photos.geometry import overlap
from tests.support.photos.pictures import encode, picture, pixels
from tests.support.running.waiting import together
from tests.support.service.http_client import PNG, index, problem, search
from tests.support.service.services import LIMITS, OwnService

# Indexing


def test_a_raw_body_is_indexed(client):
    data = encode(pixels("raw", 123, 77))
    before = client.get("/stats").json()["store"]["sequence"]
    image = index(client, data, filename="raw.png")
    digest = hashlib.sha256(data).hexdigest()
    assert (image["status"], image["id"], image["sha256"]) == ("created", digest, digest)
    assert (image["filename"], image["bytes"]) == ("raw.png", len(data))
    assert (image["width"], image["height"], image["animated"]) == (123, 77, False)
    assert image["media_type"] == "image/png"
    assert image["sequence"] == before + 1
    whole = {"box": [0, 0, 123, 77], "source": "whole", "confidence": None, "label": None}
    assert image["chunks"][-1] == whole


def test_the_objects_of_a_photo_are_its_chunks(library):
    for name, label in [("coffee.png", "cup"), ("chelsea.png", "cat")]:
        *parts, whole = library[name]["chunks"]
        (found,) = [chunk for chunk in parts if chunk["label"] == label]
        assert found["source"] == "detection"
        assert all(part["source"] == "tile" for part in parts if part["label"] is None)
        assert 0.3 < found["confidence"] <= 1
        x1, y1, x2, y2 = found["box"]
        assert 0 <= x1 < x2 <= library[name]["width"]
        assert 0 <= y1 < y2 <= library[name]["height"]
        assert whole["source"] == "whole"


def test_a_request_may_bring_its_own_confidence_threshold(client, photos, library):
    data = (photos / "coffee.png").read_bytes()
    wary = index(client, data, id="wary-coffee", confidence_threshold=1)
    eager = index(client, data, id="eager-coffee", confidence_threshold=0.01)
    usual = library["coffee.png"]

    def objects(image: dict[str, Any]) -> list[dict[str, Any]]:
        return [chunk for chunk in image["chunks"] if chunk["source"] == "detection"]

    assert len(objects(eager)) > len(objects(usual)) > len(objects(wary)) == 0
    for image in (wary, eager):
        assert client.delete(f"/images/{image['id']}").status_code == 204


def test_parts_are_indexed_in_the_order_they_were_sent(client):
    parts = [(f"{name}.png", picture(name)) for name in ("part-b", "part-a", "part-c")]
    response = client.post("/index", files=[("file", part) for part in parts])
    assert response.status_code == 201
    images = response.json()["images"]
    assert [image["filename"] for image in images] == [name for name, _ in parts]
    assert [image["id"] for image in images] == [
        hashlib.sha256(data).hexdigest() for _, data in parts
    ]
    assert {image["status"] for image in images} == {"created"}


def test_a_bad_part_harms_no_other(client):
    parts = [
        ("good-1.png", picture("beside the bad 1")),
        ("bad.png", b"this is no image"),
        ("cut.png", picture("cut")[:300]),
        ("good-2.png", picture("beside the bad 2")),
    ]
    response = client.post("/index", files=[("file", part) for part in parts])
    assert response.status_code == 201
    good, bad, cut, also_good = response.json()["images"]
    assert (good["status"], also_good["status"]) == ("created", "created")
    for failed, name, status in [(bad, "bad.png", 415), (cut, "cut.png", 422)]:
        assert (failed["status"], failed["filename"]) == ("failed", name)
        assert failed["error"]["status"] == status
        assert failed["error"]["detail"]
    for image in (good, also_good):
        assert client.get(f"/images/{image['id']}").status_code == 200


def test_when_all_parts_are_bad_the_answer_is_the_error_of_the_first(client):
    parts = [("file", ("a", b"no image")), ("file", ("b", picture("all bad")[:200]))]
    assert "not in an image format" in problem(client.post("/index", files=parts), 415)


def test_one_photo_sent_twice_is_stored_once(client):
    first = index(client, picture("twice"), filename="first.png")
    count = client.get("/stats").json()["store"]
    second = index(client, picture("twice"), filename="second.png")
    assert (first.pop("status"), second.pop("status")) == ("created", "exists")
    assert second == first
    assert client.get("/stats").json()["store"] == count


def test_one_photo_sent_twice_at_the_same_time_is_stored_once(client):
    data = picture("at the same time")
    images = together([lambda: index(client, data)] * 8)
    assert sorted(image.pop("status") for image in images) == ["created"] + ["exists"] * 7
    assert all(image == images[0] for image in images)


def test_a_client_may_choose_the_id(client):
    image = index(client, picture("chosen"), id="my.photo_1~a-b")
    assert image["id"] == "my.photo_1~a-b"
    assert client.get("/images/my.photo_1~a-b").content == picture("chosen")
    assert index(client, picture("chosen"), id="my.photo_1~a-b")["status"] == "exists"


def test_an_id_taken_by_other_content_is_a_conflict(client):
    index(client, picture("taken"), id="taken")
    response = client.post("/index?id=taken", content=picture("intruder"), headers=PNG)
    assert "taken" in problem(response, 409)
    assert client.get("/images/taken").content == picture("taken")


def test_an_id_names_one_photo_only(client):
    parts = [("file", (name, picture(name))) for name in ("one", "two")]
    assert "one photo" in problem(client.post("/index?id=one-of-two", files=parts), 400)


# Searching


@pytest.mark.parametrize(
    ("name", "label"),
    [("coffee.png", "cup"), ("chelsea.png", "cat"), ("motorcycle_left.png", "motorcycle")],
)
def test_a_crop_of_an_object_finds_its_photo_and_shows_where(client, photos, library, name, label):
    """Cut beside the box, scaled and compressed: nothing is the same but what is seen."""
    record = library[name]
    (chunk,) = [chunk for chunk in record["chunks"] if chunk["label"] == label]
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


# Reading and deleting


def test_the_original_comes_back_as_it_was_sent(client, photos, library):
    for name in ("rocket.jpg", "coffee.png"):
        data, record = (photos / name).read_bytes(), library[name]
        response = client.get(f"/images/{record['id']}")
        assert response.status_code == 200
        assert response.content == data
        assert response.headers["content-type"] == record["media_type"]
        assert response.headers["etag"] == f'"{record["sha256"]}"'
        assert response.headers["x-content-type-options"] == "nosniff"


def test_an_original_that_did_not_change_is_not_sent_again(client, library):
    path = f"/images/{library['rocket.jpg']['id']}"
    tag = client.get(path).headers["etag"]
    for condition in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        response = client.get(path, headers={"If-None-Match": condition})
        assert (response.status_code, response.content) == (304, b""), condition
        assert response.headers["etag"] == tag
    for condition in ('"other"', tag.replace('"', "")):
        response = client.get(path, headers={"If-None-Match": condition})
        assert response.status_code == 200, condition


def test_a_photo_has_a_thumbnail(client, library):
    for name in ("rocket.jpg", "camera.png"):
        record = library[name]
        path = f"/images/{record['id']}/thumbnail"
        response = client.get(path)
        assert (response.status_code, response.headers["content-type"]) == (200, "image/jpeg")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert len(response.content) <= 20_000
        with Image.open(io.BytesIO(response.content)) as thumbnail:
            assert max(thumbnail.size) == 320
            ratio = thumbnail.width / thumbnail.height
        assert abs(ratio / (record["width"] / record["height"]) - 1) < 0.01
        again = client.get(path, headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert "nobody" in problem(client.get("/images/nobody/thumbnail"), 404)


def test_the_content_type_is_what_the_bytes_are(client):
    """Not what the client says: a page must not come back as a page."""
    data = picture("mislabelled")
    headers = {"Content-Type": "image/svg+xml"}
    (image,) = client.post("/index", content=data, headers=headers).json()["images"]
    assert client.get(f"/images/{image['id']}").headers["content-type"] == "image/png"


def test_the_record_is_what_indexing_answered(client):
    image = index(client, picture("record"), filename="record.png")
    del image["status"]
    response = client.get(f"/images/{image['id']}/record")
    assert (response.status_code, response.json()) == (200, image)


def test_pages_lead_through_all_photos_in_the_order_of_their_ids(client):
    for number in range(5):
        index(client, picture(f"page {number}"), id=f"page-{number}")
    found, path = [], "/images?limit=3"
    while path is not None:
        page = client.get(path).json()
        assert len(page["images"]) <= 3
        found += [record["id"] for record in page["images"]]
        path = page["next"]
    assert found == sorted(set(found))
    assert len(found) == client.get("/stats").json()["store"]["photos"]
    after = client.get("/images", params={"after": "page-1", "limit": 2}).json()
    assert [record["id"] for record in after["images"]] == ["page-2", "page-3"]


def test_a_deleted_photo_is_nowhere(client):
    data = picture("deleted")
    id = index(client, data)["id"]
    response = client.delete(f"/images/{id}")
    assert (response.status_code, response.content) == (204, b"")
    last = client.get("/stats").json()["store"]["sequence"]
    assert response.headers["inset-sequence"] == str(last)
    matches = search(client, data, limit=1000, min_sequence=response.headers["inset-sequence"])
    assert id not in [match["id"] for match in matches]
    for path in (f"/images/{id}", f"/images/{id}/record", f"/images/{id}/thumbnail"):
        assert id in problem(client.get(path), 404)
    # Whoever had no answer asks again, and has the same one.
    again = client.delete(f"/images/{id}")
    assert (again.status_code, again.headers["inset-sequence"]) == (204, str(last))
    assert "never" in problem(client.delete("/images/never"), 404)
    assert id in problem(client.post("/search", params={"id": id}), 404)


def test_an_id_may_be_used_again_after_its_photo_was_deleted(client):
    index(client, picture("before"), id="again")
    for name in ("after 1", "after 2"):
        assert client.delete("/images/again").status_code == 204
        assert index(client, picture(name), id="again")["status"] == "created"
        match = search(client, picture(name), limit=1)[0]
        assert (match["id"], match["distance"] < 0.001) == ("again", True)
        assert client.get("/images/again").content == picture(name)
    nearest = {match["id"]: match for match in search(client, picture("before"), limit=1000)}
    assert nearest["again"]["distance"] > 0.001


# The service itself


def test_health_and_stats(client, library):
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})
    stats = client.get("/stats").json()
    assert stats["segmenter"] == "yolov5s"
    assert stats["encoder"]["name"].endswith("models/compact")
    assert len(stats["encoder"]["digest"]) == 64
    assert stats["encoder"]["text"] is False
    assert stats["chunk_index"]["engine"] == "approximate"
    assert stats["store"]["photos"] >= len(library)
    assert stats["store"]["chunks"] >= stats["store"]["photos"]
    assert stats["store"]["original_bytes"] < stats["store"]["used_bytes"]


def test_stats_count_what_comes_and_goes(client):
    def counts() -> dict[str, int]:
        return client.get("/stats").json()["store"]

    data, before = picture("counted"), counts()
    image = index(client, data)
    during = counts()
    assert during["photos"] == before["photos"] + 1
    assert during["chunks"] == before["chunks"] + len(image["chunks"])
    assert during["original_bytes"] == before["original_bytes"] + len(data)
    client.delete(f"/images/{image['id']}")
    after = counts()
    for key in ("photos", "chunks", "original_bytes"):
        assert after[key] == before[key]
    assert after["sequence"] == before["sequence"] + 2
    search(client, data)  # it waits until the chunk index knows
    index_state = client.get("/stats").json()["chunk_index"]
    for key in ("photos", "chunks", "sequence"):
        assert index_state[key] == after[key]


def test_unknown_paths_and_methods(client):
    assert "/nothing" in problem(client.get("/nothing"), 404)
    response = client.put("/images/abc")
    assert "PUT" in problem(response, 405)
    assert set(response.headers["allow"].split(", ")) >= {"GET", "DELETE"}
    assert "GET" in problem(client.get("/index"), 405)


# Many at once


def test_searches_at_the_same_time_answer_as_one_after_the_other(client, photos, library):
    """They share batches; a bad one among them harms no other."""
    queries = {record["id"]: photos / name for name, record in library.items()}

    def by_body(id: str) -> Any:
        return search(client, queries[id].read_bytes(), limit=3)

    def by_id(id: str) -> Any:
        return search(client, id=id, limit=3)

    def bad(id: str) -> Any:
        return problem(client.post("/search", content=b"no image", headers=PNG), 415)

    calls = [lambda ask=ask, id=id: ask(id) for id in queries for ask in (by_body, by_id, bad)]
    at_once = together(calls)
    for id, one, other in zip(queries, at_once[::3], at_once[1::3], strict=True):
        for matches in (one, other):
            assert matches[0]["id"] == id
            assert matches[0]["distance"] < 0.001
        alone = by_body(id)
        assert [match["id"] for match in one] == [match["id"] for match in alone]
        np.testing.assert_allclose(
            [match["distance"] for match in one],
            [match["distance"] for match in alone],
            atol=1e-4,
        )


def flood(client: httpx.Client, path: str, pictures: list[bytes]) -> list[httpx.Response]:
    """Send pictures at the same time; return the answers."""

    def send(data: bytes) -> httpx.Response:
        return client.post(path, content=data, headers=PNG)

    return together([lambda data=data: send(data) for data in pictures])


def flood_with_searches(client: httpx.Client, pictures: list[bytes]) -> list[httpx.Response]:
    """Search for pictures at the same time, behind some that take long to decode.

    A quick machine may still answer each before the queue is full: then it is asked again.
    """
    large = encode(Image.new("RGB", (4400, 4400)))  # a few kilobytes
    for _ in range(5):
        responses = flood(client, "/search", [large] * 8 + pictures)[8:]
        if any(response.status_code == 503 for response in responses):
            break
    return responses


def test_an_overloaded_service_says_so_and_harms_nothing(client):
    """Each answer is what was asked for, or a 503 that says when to try again."""
    pictures = [picture(f"overload {number}") for number in range(80)]
    ids = [hashlib.sha256(data).hexdigest() for data in pictures]
    stored = []
    for path, success in [("/index", 201), ("/search", 200)]:
        if path == "/index":
            responses = flood(client, path, pictures)
        else:
            responses = flood_with_searches(client, pictures)
        assert {response.status_code for response in responses} == {success, 503}, path
        for response in responses:
            if response.status_code == 503:
                assert "queue is full" in problem(response, 503)
                assert int(response.headers["retry-after"]) > 0
        if path == "/index":
            stored = [
                id for id, response in zip(ids, responses, strict=True) if response.is_success
            ]
    assert client.get("/healthz").status_code == 200
    for id, data in zip(ids, pictures, strict=True):
        original = client.get(f"/images/{id}")
        if id not in stored:
            problem(original, 404)
            continue
        assert original.content == data
        (match,) = search(client, data, limit=1)
        assert match["id"] == id
        assert match["distance"] < 0.001
        assert client.delete(f"/images/{id}").status_code == 204


# Python


HANDLES = """
import base64, json, sys
import ray
from ray import serve
from deployments.errors import IdTaken, InsetError, NotAnImage, UnknownId

ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
handle = serve.get_app_handle("inset")
data, other = (base64.b64decode(line) for line in sys.stdin)

image = handle.index.remote(
    data, id="from-python", filename="python.png", metadata={"language": "Python"}
).result()
answer = handle.search.remote(data, filter="language=Python").result()
record, original = handle.get.remote("from-python").result()
thumbnail = handle.thumbnail.remote("from-python").result()
errors = []
for response, kind in [
    (handle.index.remote(b"no image"), NotAnImage),
    (handle.index.remote(other, id="from-python"), IdTaken),
    (handle.get.remote("nobody"), UnknownId),
]:
    try:
        response.result()
    except InsetError as error:
        errors.append([isinstance(error, kind), error.status, error.detail])
handle.delete.remote("from-python").result()
try:
    handle.get.remote("from-python").result()
except UnknownId as error:
    errors.append([True, error.status, error.detail])
print(json.dumps({
    "image": image.model_dump(mode="json"),
    "matches": [match.model_dump(mode="json") for match in answer.matches],
    "record": record.model_dump(mode="json"),
    "same": original == data,
    "thumbnail": base64.b64encode(thumbnail).decode(),
    "errors": errors,
}))
"""


def test_handles_do_the_same_from_another_process(client, service: OwnService, tmp_path):
    import base64

    data, other = picture("by handle"), picture("other by handle")
    lines = b"\n".join(map(base64.b64encode, (data, other)))
    # Ray asks for a token by default; with an address it has to be told to look for it.
    environment = {"RAY_AUTH_MODE": "token"} | os.environ
    script = subprocess.run(
        [sys.executable, "-c", HANDLES, service.ray_address()],
        input=lines,
        capture_output=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    assert script.returncode == 0, script.stderr.decode()[-3000:]
    answer = json.loads(script.stdout)
    image, (match,) = answer["image"], answer["matches"]
    assert (image.pop("status"), image["filename"]) == ("created", "python.png")
    assert answer["record"] == image
    assert answer["same"]
    assert base64.b64decode(answer["thumbnail"])[:2] == b"\xff\xd8"  # JPEG
    assert (match["id"], match["url"]) == ("from-python", "/images/from-python")
    assert match["distance"] < 0.001
    statuses = [[True, status] for status in (415, 409, 404, 404)]
    assert [error[:2] for error in answer["errors"]] == statuses
    assert all(detail for _, _, detail in answer["errors"])
    problem(client.get("/images/from-python"), 404)

    # By HTTP the same record comes of the same bytes.
    metadata = json.dumps({"language": "Python"})
    by_http = index(client, data, id="from-python", filename="python.png", metadata=metadata)
    for key in set(image) - {"sequence", "indexed_at"}:
        assert by_http[key] == image[key]


def test_the_handle_example_of_the_readme(client, service: OwnService, photos, tmp_path):
    """As it is printed there, but for the address of the right Ray."""
    example = readme_example("get_app_handle")
    assert example.count('"auto"') == 1
    example = example.replace('"auto"', repr(service.ray_address()))
    Image.open(photos / "coffee.png").save(tmp_path / "photo.jpg")
    Image.open(photos / "coffee.png").crop((170, 12, 424, 303)).save(tmp_path / "crop.jpg")
    script = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"RAY_AUTH_MODE": "token"} | os.environ,
        timeout=60,
    )
    assert script.returncode == 0, script.stderr[-3000:]
    id, *rest = script.stdout.split()
    assert rest[0] == "created"
    assert "photo.jpg" in rest
    problem(client.get(f"/images/{id}"), 404)
