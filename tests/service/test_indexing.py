"""Indexing over HTTP: what is answered, and what is stored."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.support.photos.pictures import encode, picture, pixels
from tests.support.running.waiting import together
from tests.support.service.http_client import PNG, index, problem


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
