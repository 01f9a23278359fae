"""scripts/evaluate.py: the queries, the figures, the encoders."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from common.options import parse_encoder
from evaluation.encoders import Network, load_encoder
from evaluation.queries import (
    EvaluationFailed,
    Query,
    find_photos,
    iou,
    make_queries,
    object_boxes,
    patch_boxes,
    read_labels,
)
from evaluation.report import Answer, Row, draw_misses, misses, row_figures, table
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deployments.errors import ModelUnavailable
from deployments.settings import EncoderSettings
from tests.support.paths import ROOT
from tests.support.pictures import encode, pixels
from tests.support.services import free_port

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
    with pytest.raises(EvaluationFailed, match=r"broken\.jpg: .*truncated"):
        make_queries(find_photos(tmp_path), None, 0)
    (tmp_path / "broken.jpg").unlink()
    with pytest.raises(EvaluationFailed, match="no images in"):
        find_photos(tmp_path)


# Figures


def query(photo: str, kind: str = "object", turned: bool = False) -> Query:
    return Query(photo, f"{photo}.png", kind, (0, 0, 10, 10), turned, b"")


def test_figures_of_a_ranking_by_hand():
    chunks = {"a": [(0, 0, 10, 10), (0, 0, 40, 40)], "b": [(0, 0, 40, 40)], "c": [(0, 0, 10, 5)]}
    found = [
        (query("a"), Answer(["a", "b"], (0, 0, 10, 5))),
        (query("b"), Answer(["b", "a"], (0, 0, 40, 40))),
        (query("c"), Answer(["a", "b", "c"], (0, 0, 10, 10))),
        (query("a"), Answer(["x", "y", "z", "v", "w", "a"], (0, 0, 1, 1))),
        (query("b", "patch", turned=True), Answer(["c"], (0, 0, 10, 5))),
        (query("a", "patch"), Answer([], None)),
    ]
    queries, answers = zip(*found, strict=True)
    row = row_figures(Row("mine", "2,3", 8, chunks, list(answers), 5.5), queries)
    assert row["chunks_per_photo"] == pytest.approx(4 / 3)
    assert row["index_bytes_per_photo"] == pytest.approx(4 / 3 * 8 * 2)
    assert row["object"] == {
        "queries": 4,
        "recall@1": 0.5,
        "recall@5": 0.75,
        "recall@10": 1,
        "box_iou": pytest.approx((0.5 + 1 / 16) / 2),
        "covered": 0.75,
        "recall@1_covered": pytest.approx(1 / 3),
    }
    assert (row["patch"]["queries"], row["patch"]["recall@10"]) == (2, 0)
    assert row["patch"]["covered"] == 0.5
    assert row["patch"]["box_iou"] is None
    assert row["patch, not turned"]["queries"] == 1
    assert row["patch, not turned"]["covered"] == 1
    assert [q.photo for q, _ in misses(found)] == ["c", "a", "b", "a"]
    json.dumps(row)

    found, costs = table([row]).split("\n\n")
    assert [line.split(" | ")[2] for line in found.splitlines()[2:]] == GROUPS
    assert "| mine | 2,3 | object | 4 | 0.500 | 0.750 | 1.000 | 0.281 | 0.750 | 0.333 |" in found
    assert costs.splitlines()[-1] == "| mine | 2,3 | 8 | 1.3 | 21 | 5.5 |"
    for lines in (found.splitlines(), costs.splitlines()):
        assert len({line.count("|") for line in lines}) == 1


def test_misses_are_drawn_with_both_boxes(folder):
    photos = {photo.id: photo for photo in find_photos(folder / "images")}
    queries = cut_all(folder)
    first, second = list(photos)[:2]
    missed = [
        (q, answer)
        for q in queries[:10]
        for answer in (
            Answer([second if q.photo == first else first], (0, 0, 200, 150)),
            Answer(["not of this run"], (0, 0, 10, 10)),
            Answer([], None),
        )
    ]
    sheet = np.asarray(draw_misses(missed, photos))
    assert len(sheet) > 12 * 240  # 24 of the 30, two in a line
    for colour in ((47, 158, 68), (224, 49, 49)):
        assert (sheet == colour).all(2).any()
    assert draw_misses([], photos).width == sheet.shape[1]


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
    with pytest.raises(ModelUnavailable, match=r"pip install -e '.\[train\]'"):
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
        ([*images, "--url", "http://x", "--segmenter", "{}"], 2, "the service's own encoder and"),
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
