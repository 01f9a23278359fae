"""The service by its Ray handle, from another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from PIL import Image

from tests.support.documents import readme_example
from tests.support.photos.pictures import picture
from tests.support.service.http_client import index, problem
from tests.support.service.services import OwnService

HANDLES = """
import base64, json, sys
import ray
from ray import serve
from deployments.errors import IdTaken, InsetError, NotAnImage, UnknownId
from deployments.records import NewPhoto

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
many = handle.index_many.remote([
    NewPhoto(data, id="one-of-many"), NewPhoto(b"no image"), NewPhoto(other, id="from-python"),
    NewPhoto(data, id="from-python"),
]).result()
handle.delete.remote("one-of-many").result()
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
    "many": [
        one.detail if isinstance(one, InsetError) else [one.id, one.status] for one in many
    ],
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
    stored, no_image, taken, known = answer["many"]
    assert (stored, known) == (["one-of-many", "created"], ["from-python", "exists"])
    assert [no_image, taken] == [detail for _, _, detail in answer["errors"][:2]]

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
