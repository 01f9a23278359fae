"""What a client should not send is refused and harms nothing; an odd image is still an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.photos.pictures import encode, picture, pixels
from tests.support.running.waiting import together
from tests.support.service.http_client import PNG, index, problem, search
from tests.support.service.services import LIMITS


def multipart(*parts: tuple[str, bytes, bytes]) -> dict[str, Any]:
    """A request's body from (name, filename, content), for file names that httpx would mend."""
    body = b""
    for name, filename, content in parts:
        body += b"--seam\r\nContent-Disposition: form-data; "
        body += b'name="%b"; filename="%b"\r\n\r\n' % (name.encode(), filename)
        body += content + b"\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=seam"}
    return {"content": body + b"--seam--\r\n", "headers": headers}


# What is large


def test_an_image_of_the_largest_size_goes_all_the_way(client):
    """Deployments send it to each other; gRPC's own limit is 4 MiB."""
    data = picture("large")
    data += bytes(LIMITS["max_image_bytes"] - len(data))  # decoders don't look behind the end
    id = index(client, data)["id"]
    assert client.get(f"/images/{id}").content == data
    assert client.get(f"/images/{id}", headers={"Range": "bytes=1-"}).content == data[1:]
    assert client.get(f"/images/{id}/thumbnail").status_code == 200
    for query in ({"content": data, "headers": PNG}, {"params": {"id": id}}):
        assert client.post("/search", **query).json()["matches"][0]["id"] == id
    assert client.delete(f"/images/{id}").status_code == 204


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
        pytest.param(encode(pixels("cut"), "JPEG")[:700], 422, "the JPEG is cut", id="cut jpeg"),
        pytest.param(picture("cut")[:700], 422, "truncated", id="cut png"),
        pytest.param(picture("cut")[:20], 422, "read", id="png header"),
        pytest.param(bomb(), 413, "100,000,000 pixels", id="bomb"),
        pytest.param(
            bytes(LIMITS["max_image_bytes"] + 1),
            413,
            f"{LIMITS['max_image_bytes']:,} bytes",
            id="long",
        ),
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

    whole = client.post(path, content=bytes(size), headers=PNG)
    assert "6,291,456" in problem(whole, 413)  # by its content length, before anything is read
    assert f"{LIMITS['max_image_bytes']:,}" in problem(
        client.post(path, content=in_pieces(), headers=PNG), 413
    )
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
        ("/search?box=500,500,600,600", "outside the picture"),
        ("/search?max_distance=3", "max_distance=3"),
        ("/search?max_distance=nan", "max_distance=nan"),
        ("/search?min_sequence=-1", "min_sequence=-1"),
        ("/search?filter=year", "'year' is not a condition"),
        ("/search?filter=year>=2020&filter=year==2021", "'year==2021'"),
        ("/search?filter=", "'' is not a condition"),
        ("/index?metadata=year", "not JSON"),
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
