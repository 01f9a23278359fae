"""Reading and deleting photos over HTTP."""

from __future__ import annotations

import io

from PIL import Image

from tests.support.photos.pictures import picture
from tests.support.service.http_client import index, problem, search


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
