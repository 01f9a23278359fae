"""What the encoder is trained on."""

import numpy as np
import pytest
from evaluation.queries import iou
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from training.pairs import (
    PairSettings,
    draw_pair,
    draw_tile,
    draw_window,
    jittered,
    load_photos,
    recoloured,
)

SIZES = st.tuples(st.integers(40, 700), st.integers(40, 700))
SEEDS = st.integers(0, 2**32 - 1)


def inside(window, size):
    x1, y1, x2, y2 = window
    return 0 <= x1 < x2 <= size[0] + 1e-6 and 0 <= y1 < y2 <= size[1] + 1e-6


@given(SIZES, SEEDS)
def test_windows_lie_inside_the_photo(size, seed):
    random = np.random.default_rng(seed)
    window = draw_window(size, (0.12, 0.85), random)
    assert inside(window, size)
    assert inside(jittered(window, size, 0.13, random), size)


@given(SIZES, SEEDS)
def test_tiles_overlap_their_query(size, seed):
    random = np.random.default_rng(seed)
    window = draw_window(size, (0.12, 0.85), random)
    tile = draw_tile(window, size, 0.3, random)
    assert inside(tile, size)
    assert iou(window, [tile])[0] >= 0.3


def photo(seed=0, width=90, height=60):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def test_a_pair_follows_from_its_seed():
    settings = PairSettings(32)
    a, b, c = (draw_pair(photo(), settings, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert a.chunk.shape == a.query.shape == (32, 32, 3)
    assert a.chunk.dtype == a.query.dtype == np.uint8
    np.testing.assert_array_equal(a.chunk, b.chunk)
    np.testing.assert_array_equal(a.query, b.query)
    assert not np.array_equal(a.query, c.query)


def test_both_windows_of_a_pair_show_the_same_place():
    """Their mean colours are close, compared with those of other pairs."""
    settings = PairSettings(32, recoloured=0)
    pairs = [draw_pair(photo(seed), settings, np.random.default_rng(seed)) for seed in range(40)]
    chunks, queries = (
        np.array([getattr(pair, side).mean((0, 1)) for pair in pairs])
        for side in ("chunk", "query")
    )
    distances = np.linalg.norm(chunks[:, None] - queries, axis=-1)
    assert np.median(np.diag(distances)) < np.median(distances) / 1.5


def test_other_colours_are_the_same_for_both():
    picture = Image.fromarray(photo())
    a, b = recoloured((picture, picture), np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert not np.array_equal(np.asarray(a), np.asarray(picture))


def test_photos_are_scaled_down_and_an_empty_folder_is_said(tmp_path):
    Image.fromarray(photo(width=1300, height=650)).save(tmp_path / "wide.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (loaded,) = load_photos([tmp_path])
    assert loaded.shape == (320, 640, 3)
    (tmp_path / "wide.png").unlink()
    with pytest.raises(SystemExit, match="no pictures in"):
        load_photos([tmp_path])
