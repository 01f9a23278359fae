"""The service as a client sees it: HTTP in, HTTP out, and the handles for Python."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import LIMITS, Service, encode, picture, pixels, together
from PIL import Image

PNG = {"Content-Type": "image/png"}
LIBRARY = [
    *("astronaut.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "color.png"),
    *("horse.png", "hubble_deep_field.jpg", "motorcycle_left.png", "page.png", "retina.jpg"),
    "rocket.jpg",
]


def index(client: httpx.Client, data: bytes, **parameters: Any) -> dict[str, Any]:
    """Index one picture, which must work; returns its record and status."""
    response = client.post("/index", content=data, params=parameters, headers=PNG)
    assert response.status_code == 201, response.text
    (image,) = response.json()["images"]
    return image


def search(client: httpx.Client, data: bytes | None = None, **parameters: Any) -> list[dict]:
    """Search, which must work; returns the matches."""
    headers = PNG if data is not None else {}
    response = client.post("/search", content=data, params=parameters, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()["matches"]


def multipart(*parts: tuple[str, bytes, bytes]) -> dict[str, Any]:
    """A request's body from (name, filename, content), for file names that httpx would mend."""
    body = b""
    for name, filename, content in parts:
        body += b"--seam\r\nContent-Disposition: form-data; "
        body += b'name="%b"; filename="%b"\r\n\r\n' % (name.encode(), filename)
        body += content + b"\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=seam"}
    return {"content": body + b"--seam--\r\n", "headers": headers}


def problem(response: httpx.Response, status: int) -> str:
    """Check that an answer is a problem of this status; returns its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert set(content) == {"type", "title", "status", "detail"}
    assert content["status"] == status
    assert content["title"]
    assert content["detail"]
    return content["detail"]


def area(box: list[float]) -> float:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union."""
    both = [max(one[0], other[0]), max(one[1], other[1])]
    both += [min(one[2], other[2]), min(one[3], other[3])]
    return area(both) / (area(one) + area(other) - area(both))


@pytest.fixture(scope="module")
def library(client: httpx.Client, photos: Path) -> dict[str, dict[str, Any]]:
    """Records of real photos that are stored, by file name."""
    files = [photos / name for name in LIBRARY]
    records = together(
        [lambda file=file: index(client, file.read_bytes(), filename=file.name) for file in files]
    )
    return {record["filename"]: record for record in records}


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
    assert "no image format" in problem(client.post("/index", files=parts), 415)


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


def test_a_match_has_all_of_its_chunks_nearest_first(client, photos, library):
    record = library["astronaut.png"]
    match = search(client, (photos / "astronaut.png").read_bytes(), limit=1)[0]
    assert match["id"] == record["id"]
    assert match["distance"] < 0.01
    assert sorted(chunk["box"] for chunk in match["chunks"]) == sorted(
        chunk["box"] for chunk in record["chunks"]
    )
    distances = [chunk["distance"] for chunk in match["chunks"]]
    assert distances == sorted(distances)
    nearest = match["chunks"][0]
    assert nearest.items() <= match.items()


def test_the_ways_to_ask_agree(client, photos, library):
    """The body, a part and the id of the same picture; with a box too."""
    data = (photos / "rocket.jpg").read_bytes()
    id = library["rocket.jpg"]["id"]
    for box in ({}, {"box": "50,60,350.5,400"}):
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
    match = search(client, id=record["id"], box=",".join(map(str, cup["box"])), limit=1)[0]
    assert (match["id"], match["box"], match["label"]) == (record["id"], cup["box"], "cup")
    assert match["distance"] < 0.001


def test_answers_are_limited_sorted_and_without_repetition(client, library):
    everything = search(client, id=library["camera.png"]["id"], limit=1000)
    assert len(everything) == client.get("/stats").json()["store"]["photos"]
    order = [(match["distance"], match["id"]) for match in everything]
    assert order == sorted(order)
    assert len({match["id"] for match in everything}) == len(everything)
    assert search(client, id=library["camera.png"]["id"], limit=3) == everything[:3]
    assert search(client, id=library["camera.png"]["id"]) == everything[:10]


def test_chunks_beyond_max_distance_do_not_count(client, library):
    id = library["camera.png"]["id"]
    everything = search(client, id=id, limit=1000)
    bound = everything[len(everything) // 2]["distance"]
    within = search(client, id=id, limit=1000, max_distance=bound)
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
    assert time.monotonic() - start < LIMITS["timeout_s"] / 4
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
    for path in (f"/images/{id}", f"/images/{id}/record"):
        assert id in problem(client.get(path), 404)
    assert id in problem(client.delete(f"/images/{id}"), 404)
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


# What is refused


def bomb() -> bytes:
    return encode(Image.new("1", (10_000, 10_000)))


@pytest.mark.parametrize(
    ("data", "status", "hint"),
    [
        pytest.param(b"not an image", 415, "send JPEG, PNG", id="text"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "send JPEG", id="svg"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "send JPEG", id="postscript"),
        pytest.param(b"", 422, "no bytes", id="zero bytes"),
        pytest.param(encode(pixels("cut"), "JPEG")[:700], 422, "truncated", id="cut jpeg"),
        pytest.param(picture("cut")[:700], 422, "truncated", id="cut png"),
        pytest.param(picture("cut")[:20], 422, "read", id="png header"),
        pytest.param(bomb(), 413, "100,000,000 pixels", id="bomb"),
        pytest.param(bytes(LIMITS["max_image_bytes"] + 1), 413, "4,194,304 bytes", id="long"),
    ],
)
@pytest.mark.parametrize("path", ["/index", "/search"])
def test_bad_images_are_refused(client, path, data, status, hint):
    part = client.post(path, files=[("file", ("bad", data))])
    assert hint in problem(part, status)
    if data or path == "/index":  # a search may do without a body
        assert hint in problem(client.post(path, content=data, headers=PNG), status)


@pytest.mark.parametrize("path", ["/index", "/search"])
@pytest.mark.parametrize("media_type", ["text/plain", "application/json", None])
def test_other_content_types_are_refused(client, path, media_type):
    headers = {} if media_type is None else {"Content-Type": media_type}
    response = client.post(path, content=picture("typed"), headers=headers)
    detail = problem(response, 415)
    assert (media_type or "missing") in detail
    assert "image/jpeg" in detail


@pytest.mark.parametrize("path", ["/index", "/search"])
def test_a_body_over_the_limit_is_refused_however_it_is_sent(client, path):
    size = LIMITS["max_request_bytes"] + 2**20

    def in_pieces() -> Iterator[bytes]:
        """Without a content length."""
        for _ in range(size // 2**20):
            yield bytes(2**20)

    for body in (bytes(size), in_pieces()):
        assert "4,194,304" in problem(client.post(path, content=body, headers=PNG), 413)
    part = client.post(path, files=[("file", ("long", bytes(size)))])
    assert "6,291,456" in problem(part, 413)


def test_parts_within_the_limit_may_be_too_much_together(client):
    parts = [("file", (str(number), bytes(3 * 2**20))) for number in range(3)]
    assert "send less at once" in problem(client.post("/index", files=parts), 413)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/search?limit=0", "limit=0"),
        ("/search?limit=1001", "limit=1001"),
        ("/search?limit=abc", "limit=abc"),
        ("/search?limt=3", "no parameter limt"),
        ("/search?box=1,2,3", "box=1,2,3"),
        ("/search?box=a,b,c,d", "box=a,b,c,d"),
        ("/search?box=nan,0,10,10", "box=nan"),
        ("/search?box=10,10,10,20", "is empty"),
        ("/search?box=30,10,10,20", "is empty"),
        ("/search?box=500,500,600,600", "outside of the picture"),
        ("/search?max_distance=3", "max_distance=3"),
        ("/search?max_distance=nan", "max_distance=nan"),
        ("/search?min_sequence=-1", "min_sequence=-1"),
        ("/search?filter=year", "'year' is no condition"),
        ("/search?filter=year>=2020&filter=year==2021", "'year==2021'"),
        ("/search?filter=", "'' is no condition"),
        ("/index?metadata=year", "no JSON"),
        ('/index?metadata={"year":null}', "'year' must be a string"),
        ("/search?text=cat", "exactly one query"),
        ("/search?id=cat", "exactly one query"),
        ("/index?confidence_threshold=2", "confidence_threshold=2"),
        ("/index?confidence_threshold=nan", "confidence_threshold=nan"),
        ("/index?id=a/b", "id=a/b"),
        ("/index?id=" + "a" * 201, "id=aaa"),
        ("/index?colour=red", "no parameter colour"),
    ],
)
def test_wrong_parameters_are_named(client, path, hint):
    assert hint in problem(client.post(path, content=picture("parameters"), headers=PNG), 400)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/images?limit=0", "limit=0"),
        ("/images?after=%2Fetc", "after=/etc"),
        ("/images?before=x", "no parameter before"),
        ("/images/-x", "-x"),
        ("/images/-x/record", "-x"),
    ],
)
def test_wrong_parameters_of_readers_are_named(client, path, hint):
    assert hint in problem(client.get(path), 400)


def test_unknown_ids_are_named(client):
    for method, path in [
        ("GET", "/images/nobody"),
        ("GET", "/images/nobody/record"),
        ("DELETE", "/images/nobody"),
        ("POST", "/search?id=nobody"),
        ("POST", "/search?id=nobody&box=0,0,9,9"),
    ]:
        assert "nobody" in problem(client.request(method, path), 404)


def test_a_search_takes_one_query(client, library):
    assert "exactly one query" in problem(client.post("/search"), 400)
    both = client.post("/search", params={"id": library["coffee.png"]["id"], "text": "coffee"})
    assert "exactly one query" in problem(both, 400)
    parts = [("file", (name, picture(name))) for name in ("one", "two")]
    assert "not several" in problem(client.post("/search", files=parts), 400)


@pytest.mark.parametrize("path", ["/index", "/search"])
def test_parts_have_one_name(client, path):
    data = picture("part of another name")
    response = client.post(path, **multipart(("photo", b"a.png", data)))
    assert "'photo'" in problem(response, 400)
    assert "'file'" in problem(client.post(path, **multipart()), 400)
    headers = {"Content-Type": "multipart/form-data; boundary=seam"}
    problem(client.post(path, content=b"no parts", headers=headers), 400)
    problem(client.post(path, content=b"", headers={"Content-Type": "multipart/form-data"}), 400)


# What is unusual, but an image


def gif() -> bytes:
    frames = [pixels(f"frame {number}") for number in range(3)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated() -> bytes:
    """Lies on its side, and says so."""
    image = pixels("rotated", 60, 40)
    exif = image.getexif()
    exif[0x0112] = 6
    return encode(image, "JPEG", exif=exif)


def see_through() -> bytes:
    return encode(pixels("palette").quantize(16), transparency=3)


def deep() -> bytes:
    values = np.linspace(0, 65535, 96 * 64).reshape(64, 96).astype(np.uint16)
    return encode(Image.fromarray(values))


@pytest.mark.parametrize(
    ("data", "media_type", "size"),
    [
        pytest.param(gif(), "image/gif", (96, 64), id="animated"),
        pytest.param(
            encode(pixels("cmyk").convert("CMYK"), "JPEG"), "image/jpeg", (96, 64), id="cmyk"
        ),
        pytest.param(see_through(), "image/png", (96, 64), id="palette with transparency"),
        pytest.param(deep(), "image/png", (96, 64), id="16 bits"),
        pytest.param(rotated(), "image/jpeg", (40, 60), id="rotated"),
        pytest.param(encode(pixels("dot", 1, 1)), "image/png", (1, 1), id="one pixel"),
        pytest.param(encode(pixels("strip", 20_000, 10)), "image/png", (20_000, 10), id="strip"),
        pytest.param(encode(pixels("webp"), "WEBP"), "image/webp", (96, 64), id="webp"),
        pytest.param(encode(pixels("tiff"), "TIFF"), "image/tiff", (96, 64), id="tiff"),
        pytest.param(encode(pixels("bmp"), "BMP"), "image/bmp", (96, 64), id="bmp"),
    ],
)
def test_unusual_images_are_indexed_and_found(client, data, media_type, size):
    image = index(client, data)
    assert image["status"] == "created"
    assert (image["width"], image["height"]) == size
    assert image["chunks"][-1]["box"] == [0, 0, *size]
    assert image["media_type"] == media_type
    assert image["animated"] == (media_type == "image/gif")
    assert client.get(f"/images/{image['id']}").content == data
    match = search(client, data, limit=1)[0]
    assert match["distance"] < 0.001
    assert client.delete(f"/images/{image['id']}").status_code == 204


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"../../../etc/passwd", "../../../etc/passwd"),
        (b"C:\\windows\\evil.exe", "evil.exe"),  # the parser of multipart bodies cuts folders off
        (b"<script>alert(1)</script>.png", "<script>alert(1)</script>.png"),
        ("photo-é-写真.png".encode(), "photo-é-写真.png"),
        (b"not-utf-8-\xff\xfe.png", None),
        (b"nul\x00.png", None),
    ],
)
def test_a_hostile_file_name_is_only_text(client, sent, kept):
    data = picture(f"hostile {sent}")
    response = client.post("/index", **multipart(("file", sent, data)))
    assert response.status_code == 201
    (image,) = response.json()["images"]
    assert image["id"] == hashlib.sha256(data).hexdigest()
    if kept is not None:
        assert image["filename"] == kept
    # What couldn't be kept as it was is still text, and harms no answer.
    assert isinstance(image["filename"], str)
    assert client.get(f"/images/{image['id']}/record").json()["filename"] == image["filename"]
    assert search(client, data, limit=1)[0]["filename"] == image["filename"]
    assert client.get(f"/images/{image['id']}").content == data


def test_a_file_name_may_come_as_a_parameter(client):
    for name in ("line\nfeed\r\n.png", "../up.png", "<b>bold</b>.png", "🦀.png"):
        image = index(client, picture(f"parameter {name}"), filename=name)
        assert image["filename"] == name


# Many at once


def test_a_bad_image_in_a_batch_harms_no_other(client):
    good = [picture(f"batch {number}") for number in range(16)]
    bad = [
        (b"no image", 415),
        (picture("bad")[:400], 422),
        (bomb(), 413),
        (encode(pixels("bad"), "JPEG")[:500], 422),
    ]
    bodies = [(data, 201) for data in good]
    for place, item in zip((1, 5, 9, 13), bad, strict=True):
        bodies.insert(place, item)
    responses = together(
        [lambda data=data: client.post("/index", content=data, headers=PNG) for data, _ in bodies]
    )
    assert [r.status_code for r in responses] == [status for _, status in bodies]
    for (data, status), response in zip(bodies, responses, strict=True):
        if status == 201:
            assert response.json()["images"][0]["id"] == hashlib.sha256(data).hexdigest()
            assert search(client, data, limit=1)[0]["distance"] < 0.001
        else:
            problem(response, status)


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
matches = handle.search.remote(data, filter="language=Python").result()
record, original = handle.get.remote("from-python").result()
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
    "matches": [match.model_dump(mode="json") for match in matches],
    "record": record.model_dump(mode="json"),
    "same": original == data,
    "errors": errors,
}))
"""


def test_handles_do_the_same_from_another_process(client, service: Service, tmp_path):
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
