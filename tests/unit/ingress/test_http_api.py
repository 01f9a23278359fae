"""HTTP in and HTTP out, over a service that only remembers what it was asked."""

import json

import pytest

from deployments import errors
from deployments.errors import InsetError
from tests.support.ingress.bodies import FILE, multipart, part
from tests.support.ingress.fake_inset import (
    ASKS,
    BOX,
    PICTURE,
    PNG,
    REQUESTS,
    STATUSES,
)

PROBLEMS = {
    error.status: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, InsetError) and error is not InsetError
}


def assert_problem(response, status, title=None):
    """RFC 9457, whatever went wrong."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem.keys() == {"type", "title", "status", "detail"}
    assert problem["type"] == "about:blank"
    assert problem["status"] == status
    assert title is None or problem["title"] == title
    assert problem["detail"]
    assert ("retry-after" in response.headers) == (status == 503)
    return problem["detail"]


# Every operation, and every way it can fail


@pytest.mark.parametrize("operation", REQUESTS)
def test_every_operation_is_answered(client, service, operation):
    method, path, request = REQUESTS[operation]
    response = client.request(method, path, **request)
    assert response.status_code == STATUSES.get(operation, 200)
    assert [name for name, *_ in service.calls] == [*ASKS.get(operation, []), operation]


@pytest.mark.parametrize(
    ("path", "progress"), [("index", "progress"), ("search", "search_progress")]
)
def test_what_finds_no_room_is_refused_before_its_body_is_read(client, service, path, progress):
    service.full = getattr(service, progress)
    read = []

    def body():
        read.append(True)
        yield PICTURE

    # The client of the tests hands the body over as soon as somebody asks for it.
    response = client.post(f"/{path}", content=body(), headers={**PNG, "content-length": "9"})
    assert "no room" in assert_problem(response, 503)
    assert response.headers["retry-after"] == "7"
    assert (read, service.calls) == ([], [])
    service.full = None
    assert client.post(f"/{path}", content=PICTURE, headers=PNG).is_success


@pytest.mark.parametrize("operation", REQUESTS)
@pytest.mark.parametrize("status", PROBLEMS)
def test_every_error_becomes_its_problem(client, service, operation, status):
    service.error = PROBLEMS[status]("This is wrong: do that.")
    method, path, request = REQUESTS[operation]
    response = client.request(method, path, **request)
    assert assert_problem(response, status, PROBLEMS[status].title) == "This is wrong: do that."
    if status == 503:
        assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize("operation", REQUESTS)
def test_an_unforeseen_error_keeps_its_secrets(client, service, operation, caplog):
    service.error = KeyError("secret")
    method, path, request = REQUESTS[operation]
    response = client.request(method, path, **request)
    detail = assert_problem(response, 500, "Internal error")
    assert "secret" not in response.text
    assert "KeyError" in detail
    assert "secret" in caplog.text  # the log says more, as the answer says


def test_all_errors_are_among_the_cases():
    assert set(PROBLEMS) == {*(400, 401, 403, 404, 408, 409, 413, 415, 421, 422, 500, 503, 507)}


# /index


def test_a_raw_body_is_one_image(client, service):
    response = client.post(
        "/index?id=mine&filename=a.png&confidence_threshold=0.5", content=PICTURE, headers=PNG
    )
    assert response.status_code == 201
    (image,) = response.json()["images"]
    assert (image["id"], image["status"], image["filename"]) == ("mine", "created", "a.png")
    assert image["chunks"][0]["box"] == list(BOX)
    assert service.calls == [("index", PICTURE, "mine", "a.png", 0.5, None)]


def test_a_long_file_name_is_no_reason_to_refuse_a_photo(client, service):
    """`Inset.index` cuts it, as it cuts those of parts."""
    name = "a" * 1001
    response = client.post(f"/index?filename={name}", content=PICTURE, headers=PNG)
    assert response.status_code == 201
    assert service.calls[0][3] == name


def test_parts_bring_their_own_names(client, service):
    files = [("file", (f"{n}.png", b"%d" % n)) for n in range(5)]
    response = client.post("/index", files=files)
    assert response.status_code == 201
    assert [image["filename"] for image in response.json()["images"]] == [
        f"{n}.png" for n in range(5)
    ]
    assert {call[1:4] for call in service.calls} == {
        (b"%d" % n, None, f"{n}.png") for n in range(5)
    }


def test_one_part_may_have_an_id(client, service):
    assert client.post("/index?id=x", files={"file": ("a", b"1")}).status_code == 201
    assert service.calls == [("index", b"1", "x", "a", None, None)]
    response = client.post("/index?id=x", files=[("file", ("a", b"1"))] * 2)
    assert "?id= names one photo" in assert_problem(response, 400)
    assert len(service.calls) == 1


def test_a_bad_part_leaves_the_others_alone(client, service):
    service.bad = {b"1": errors.BrokenImage("It is broken."), b"2": errors.StoreFull("Full.")}
    files = [("file", (f"{n}.png", b"%d" % n)) for n in range(4)]
    files.append(("file", ("huge.png", b"x" * 1001)))
    response = client.post("/index", files=files)
    assert response.status_code == 201
    images = response.json()["images"]
    assert [image["status"] for image in images] == [
        "created",
        "failed",
        "failed",
        "created",
        "failed",
    ]
    assert [image["filename"] for image in images][1:3] == ["1.png", "2.png"]
    assert [images[n]["error"]["status"] for n in (1, 2, 4)] == [422, 507, 413]
    assert images[1]["error"]["detail"] == "It is broken."


def test_when_all_parts_are_bad_the_first_error_is_the_answer(client, service):
    service.bad = {b"0": errors.BrokenImage("First."), b"1": errors.NotAnImage("Second.")}
    files = [("file", (f"{n}.png", b"%d" % n)) for n in range(2)]
    assert assert_problem(client.post("/index", files=files), 422) == "First."


def test_an_unforeseen_error_of_a_part_keeps_its_secrets_and_the_others(client, service, caplog):
    """They are stored, and whoever sent them should know."""
    service.bad = {b"1": KeyError("secret")}
    files = [("file", (f"{n}.png", b"%d" % n)) for n in range(2)]
    response = client.post("/index", files=files)
    assert response.status_code == 201
    good, bad = response.json()["images"]
    assert (good["status"], bad["status"], bad["error"]["status"]) == ("created", "failed", 500)
    assert "KeyError" in bad["error"]["detail"]
    assert "secret" not in response.text
    assert "secret" in caplog.text
    files = files[1:]
    assert "secret" not in assert_problem(client.post("/index", files=files), 500)


# Metadata

METADATA = {"camera": "Canon EOS", "year": 2024, "flash": False, "note": "é\u0000=&+"}


def test_metadata_comes_as_a_parameter_or_as_a_part(client, service):
    """For all photos of the request, wherever the part is."""
    text = json.dumps(METADATA, ensure_ascii=False)
    field = part(b"metadata", text.encode())
    typed = part(b"metadata", text.encode(), b"Content-Type: application/json; charset=utf-8")
    parameters = {"params": {"metadata": text}}
    responses = [
        client.post("/index", content=PICTURE, headers=PNG, **parameters),
        client.post("/index", **multipart(FILE, FILE), **parameters),
        client.post("/index", **multipart(field, FILE, FILE)),
        client.post("/index", **multipart(FILE, typed, FILE)),
        client.post("/index", files=[("file", ("a.png", b"x"))] * 2, data={"metadata": text}),
    ]
    for response in responses:
        assert response.status_code == 201
        for image in response.json()["images"]:
            assert (image["metadata"], image["sequence"]) == (METADATA, 1)
    assert [call[-1] for call in service.calls] == [METADATA] * 9


def test_without_metadata_there_is_none(client, service):
    response = client.post("/index", content=PICTURE, headers=PNG)
    assert response.json()["images"][0]["metadata"] == {}
    assert service.calls[0][-1] is None


@pytest.mark.parametrize(
    ("parameters", "parts", "sentence"),
    [
        ({"metadata": '{"year": 2024'}, [FILE], "is not JSON"),
        ({"metadata": ""}, [FILE], "is not JSON"),
        ({"metadata": '{"year": null}'}, [FILE], "metadata's 'year' must be a string"),
        ({}, [FILE, part(b"metadata", b'{"a b": 1}')], "'a b' is not a valid key"),
        ({}, [part(b"metadata", b""), FILE], "is not JSON"),
        ({"metadata": "{}"}, [FILE, part(b"metadata", b"{}")], "send it once"),
        ({}, [FILE, *[part(b"metadata", b"{}")] * 2], "several parts named 'metadata': send one"),
        ({}, [FILE, part(b'metadata"; filename="m.json', b"{}")], "send it without one"),
        ({}, [part(b"metadata", b"{}")], "no part named 'file'"),
    ],
)
def test_wrong_metadata_is_a_problem(client, service, parameters, parts, sentence):
    response = client.post("/index", params=parameters, **multipart(*parts))
    assert sentence in assert_problem(response, 400, "Bad parameter")
    assert service.calls == []


def test_a_search_takes_no_metadata(client, service):
    response = client.post("/search", **multipart(FILE, part(b"metadata", b"{}")))
    assert "'metadata'" in assert_problem(response, 400)
    assert "no parameter metadata" in assert_problem(client.post("/search?id=a&metadata={}"), 400)
    assert service.calls == []


def test_filters_are_passed_on(client, service):
    client.post("/search?id=a&filter=year>=2020&filter=camera=Canon+EOS")
    client.post("/search?id=a&filter=year%3C%3D2020")
    assert [query["filter"] for _, _, query in service.calls] == [
        ["year>=2020", "camera=Canon EOS"],
        ["year<=2020"],
    ]


# /search


def test_a_query_is_a_picture_a_text_or_a_stored_photo(client, service):
    client.post("/search", content=PICTURE, headers=PNG)
    client.post("/search", files={"file": ("a", PICTURE)})
    client.post("/search?text=a+cup")
    client.post("/search?id=a&box=1,2,3.5,4&limit=3&max_distance=0.5&min_sequence=7")
    client.post("/search?text=a+cup", headers={"content-length": "0"})
    defaults = {
        "text": None,
        "id": None,
        "box": None,
        "limit": 10,
        "max_distance": 2,
        "max_chunks": 5,
        "min_sequence": 0,
        "filter": [],
        "verify": "auto",
        "verified": False,
        "group": None,
    }
    photo = {"id": "a", "box": (1, 2, 3.5, 4), "limit": 3, "max_distance": 0.5, "min_sequence": 7}
    assert service.calls == [
        ("search", PICTURE, defaults),
        ("search", PICTURE, defaults),
        ("search", None, defaults | {"text": "a cup"}),
        ("search", None, defaults | photo),
        ("search", None, defaults | {"text": "a cup"}),
    ]


def test_a_search_says_what_is_to_be_verified(client, service):
    client.post("/search?id=a&verify=all&verified=true&group=copies")
    client.post("/search?id=a&verify=none&verified=false")
    asked = [[query[key] for key in ("verify", "verified", "group")] for *_, query in service.calls]
    assert asked == [["all", True, "copies"], ["none", False, None]]


def test_an_answer_says_that_nothing_was_looked_at(client):
    answer = client.post("/search?id=a").json()
    assert answer.keys() == {"found", "texture", "matches"}
    assert (answer["found"], answer["texture"]) == (None, None)
    (match,) = answer["matches"]
    unset = ("verified", "quad", "part", "mirrored", "rotation", "scale", "inliers", "coverage")
    assert [match[key] for key in unset] == [None] * len(unset)
    assert match["copies"] == []


def test_matches_are_answered(client):
    (match,) = client.post("/search?id=a").json()["matches"]
    assert match["url"] == "/images/a"
    nearest = {"box": list(BOX), "source": "tile", "distance": 0.25, "label": None}
    assert match["chunks"] == [nearest]
    assert nearest.items() <= match.items()


def test_several_images_are_no_query(client, service):
    response = client.post("/search", files=[("file", ("a", b"1"))] * 2)
    assert "one image" in assert_problem(response, 400)
    assert service.calls == []


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/search?limit=0", ["limit=0"]),
        ("/search?limit=1001", ["limit=1001"]),
        ("/search?limit=ten", ["limit=ten"]),
        ("/search?max_distance=2.1", ["max_distance=2.1"]),
        ("/search?max_distance=nan", ["max_distance=nan"]),
        ("/search?min_sequence=-1", ["min_sequence=-1"]),
        ("/search?text=", ["text="]),
        ("/search?id=a/b", ["id=a/b"]),
        ("/search?id=a&box=1,2,3", ["box=1,2,3"]),
        ("/search?id=a&box=nan,0,3,5", ["box=nan"]),
        ("/search?id=a&limt=3", ["no parameter limt"]),
        ("/search?id=a&verify=some", ["verify=some"]),
        ("/search?id=a&verify=", ["verify="]),
        ("/search?id=a&verified=perhaps", ["verified=perhaps"]),
        ("/search?id=a&group=all", ["group=all"]),
        ("/search?limit=0&max_distance=3", ["limit=0", "max_distance=3"]),
        ("/index?confidence_threshold=1.1", ["confidence_threshold=1.1"]),
        ("/index?id=.hidden", ["id=.hidden"]),
        ("/index?threshold=1", ["no parameter threshold"]),
    ],
)
def test_a_wrong_parameter_is_named(client, service, path, names):
    detail = assert_problem(client.post(path), 400, "Bad parameter")
    for name in names:
        assert name in detail
    assert service.calls == []


@pytest.mark.parametrize("path", ["/images?limit=0", "/images?after=a+b", "/images?page=2"])
def test_a_wrong_parameter_of_the_list_is_named(client, service, path):
    assert_problem(client.get(path), 400, "Bad parameter")
    assert service.calls == []


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_can_be_no_id_is_a_bad_parameter(client, service, method):
    for id in ("-a", "a%20b", "x" * 201):
        assert_problem(client.request(method, f"/images/{id}"), 400, "Bad parameter")
        assert_problem(client.get(f"/images/{id}/thumbnail"), 400, "Bad parameter")
    assert service.calls == []


# /images


def test_a_list_without_chunks_has_all_else(client):
    whole, short = (client.get(f"/images?limit=2{more}").json() for more in ("", "&chunks=false"))
    assert whole["images"][0].pop("chunks")
    assert short["images"][0] == whole["images"][0]
    assert short["next"] == "/images?after=b&limit=2&chunks=false"
    assert [one["id"] for one in client.get(short["next"]).json()["images"]] == ["c"]


def test_pages_lead_to_each_other(client):
    first = client.get("/images?limit=2").json()
    assert [image["id"] for image in first["images"]] == ["a", "b"]
    second = client.get(first["next"]).json()
    assert [image["id"] for image in second["images"]] == ["c"]
    assert second["next"] is None


def test_no_images_are_an_empty_page(client, service):
    service.ids = []
    assert client.get("/images").json() == {"images": [], "next": None}


def test_a_deletion_says_its_sequence_number_and_no_more(client, service):
    response = client.delete("/images/a")
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["inset-sequence"] == "2"
    assert service.calls == [("delete", "a")]


# Places that are none


def test_nothing_there_is_a_problem(client):
    assert "/nowhere" in assert_problem(client.get("/nowhere"), 404)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/index", "POST"),
        ("HEAD", "/index", "POST"),
        ("PUT", "/images", "GET, HEAD"),
        ("POST", "/stats", "GET, HEAD"),
        ("POST", "/images/a", "DELETE, GET, HEAD"),
        ("DELETE", "/openapi.json", "GET, HEAD"),
    ],
)
def test_another_method_is_a_problem_that_says_which(client, method, path, allow):
    response = client.request(method, path)
    assert response.headers["allow"] == allow
    if method != "HEAD":
        assert f"{path} does not take {method}" in assert_problem(response, 405)


@pytest.mark.parametrize("path", ["/index/", "/images/", "/images/a/", "/stats/", "/page"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nobody_is_sent_elsewhere(client, method, path):
    """A redirect would name this host as the client does."""
    response = client.request(method, path, follow_redirects=False)
    assert path in assert_problem(response, 404)
    assert "location" not in response.headers
