"""What the encoder is trained on: windows, and what happens to the queries."""

import io

import numpy as np
import pytest
import torch
from evaluation.queries import iou
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter
from training.chance import Chance
from training.jpeg import compress
from training.pairs import AT_A_TIME, PairSettings, draw_pairs
from training.photos import SIDE, Photos
from training.wear import (
    BAR,
    barred,
    blurred,
    brightened,
    coarsened,
    contrasted,
    covered,
    mirrored,
    recoloured,
    saturated,
    worn,
)
from training.windows import (
    LEAST_SIDE,
    clipped,
    cut,
    draw_anywhere,
    draw_tiles,
    draw_windows,
    jittered,
    overlaps,
)

CPU = torch.device("cpu")
SIZES = st.lists(st.tuples(st.integers(1, SIDE), st.integers(1, SIDE)), min_size=1, max_size=20)
SEEDS = st.integers(0, 2**32 - 1)


def chance(seed=0):
    return Chance(seed, CPU)


def as_tensor(sizes):
    return torch.tensor(sizes, dtype=torch.float32)


def assert_inside(windows, sizes):
    assert (windows[:, :2] >= -1e-3).all()
    assert (windows[:, 2:] <= sizes + 1e-3).all()
    assert (windows[:, 2:] > windows[:, :2]).all()


# Windows


@given(SIZES, SEEDS)
def test_windows_lie_inside_their_photos(sizes, seed):
    sizes, random = as_tensor(sizes), chance(seed)
    windows = draw_windows(sizes, (0.12, 0.9), 0.3, random)
    assert_inside(windows, sizes)
    least = sizes.clamp(max=LEAST_SIDE)
    assert (windows[:, 2:] - windows[:, :2] >= least - 1e-3).all()
    for others in (
        jittered(windows, sizes, 0.13, random),
        draw_tiles(windows, sizes, 0.3, random),
        draw_anywhere(sizes, (0.25, 0.7), random),
    ):
        assert_inside(others, sizes)


@given(SIZES, SEEDS)
def test_tiles_overlap_their_query(sizes, seed):
    sizes, random = as_tensor(sizes), chance(seed)
    windows = draw_windows(sizes, (0.12, 0.9), 0.3, random)
    tiles = draw_tiles(windows, sizes, 0.3, random)
    for window, tile in zip(windows.tolist(), tiles.tolist(), strict=True):
        assert iou(window, [tile])[0] >= 0.3 - 1e-4


@given(SIZES, SEEDS)
def test_overlaps_are_those_of_the_evaluation(sizes, seed):
    sizes, random = as_tensor(sizes), chance(seed)
    one, other = (draw_windows(sizes, (0.2, 0.9), 0.3, random) for _ in range(2))
    expected = [iou(a, [b])[0] for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    assert overlaps(one, other).tolist() == pytest.approx(expected, abs=1e-4)


def test_tiles_are_seldom_the_query_itself():
    sizes = torch.full((500, 2), 300.0)
    windows = draw_windows(sizes, (0.12, 0.9), 0.3, chance())
    tiles = draw_tiles(windows, sizes, 0.3, chance(1))
    assert (tiles == windows).all(1).float().mean() < 0.05


def test_small_windows_are_as_likely_as_large_ones():
    sizes = torch.full((4000, 2), float(SIDE))
    windows = draw_windows(sizes, (0.12, 0.9), 0, chance())
    shares = (windows[:, 2] - windows[:, 0]) / SIDE
    assert 0.119 < shares.min() < shares.max() < 0.901
    assert (shares < (0.12 * 0.9) ** 0.5).float().mean() == pytest.approx(0.5, abs=0.03)


def test_clipping_leaves_a_pixel():
    windows = torch.tensor([[-9.0, -9, -5, -5], [500, 500, 600, 600], [-5, 10, 20, 300]])
    found = clipped(windows, torch.full((3, 2), 200.0)).tolist()
    assert found == [[0, 0, 1, 1], [199, 199, 200, 200], [0, 10, 20, 200]]


def test_windows_are_cut_as_pillow_cuts_them():
    photo = smooth(SIDE)
    windows = torch.tensor([[20.0, 40, 244, 264], [100, 30, 212, 366], [0, 0, SIDE, SIDE]])
    found = cut(tensor(photo).float().expand(3, -1, -1, -1), windows, 112)
    for number, window in enumerate(windows.tolist()):
        crop = photo.crop([round(side) for side in window])
        expected = np.asarray(crop.resize((112, 112), Image.Resampling.BOX), np.float32)
        assert np.abs(array(found[number]) - expected).mean() < 2


def test_windows_are_turned_as_pillow_turns_them():
    photo = smooth(SIDE)
    window = torch.tensor([[100.0, 100, 284, 284]])
    (found,) = cut(tensor(photo).float(), window, 112, torch.tensor([20.0]))
    # A window that is turned clockwise shows what is then turned back, anticlockwise.
    turned = photo.rotate(20, Image.Resampling.BICUBIC).crop((100, 100, 284, 284))
    expected = np.asarray(turned.resize((112, 112), Image.Resampling.BOX), np.float32)
    assert np.abs(array(found) - expected).mean() < 2
    (upright,) = cut(tensor(photo).float(), window, 112)
    assert np.abs(array(upright) - expected).mean() > 10


# JPEG


@pytest.mark.parametrize("quality", [10, 25, 49, 50, 75, 90, 95])
def test_jpeg_is_pillows(photos, quality):
    with Image.open(photos / "chelsea.png") as opened:
        picture = opened.convert("RGB").crop((60, 40, 252, 152))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file), np.float32)
    (found,) = compress(tensor(picture).float(), torch.tensor([float(quality)]))
    error = np.abs(array(found) - expected)
    lost = np.abs(np.asarray(picture, np.float32) - expected)
    # A frequency that lies between two steps may be rounded the other way: few and small.
    assert error.mean() < 0.9
    assert error.mean() < lost.mean() / 2.5
    assert np.quantile(error, 0.99) <= 10


def test_each_picture_has_its_quality():
    pictures = tensor(smooth(112)).expand(3, -1, -1, -1).float()
    found = compress(pictures, torch.tensor([20.0, 90, 20]))
    lost = (found - pictures).abs().mean((1, 2, 3)).tolist()
    assert torch.equal(found[0], found[2])
    assert lost[0] > 2 * lost[1] > 0


# What else happens to queries


def test_colours_change_as_pillow_changes_them():
    picture = smooth(112)
    given = tensor(picture).float()
    for change, enhancer, tolerance in (
        (brightened, ImageEnhance.Brightness, 1),
        (saturated, ImageEnhance.Color, 1.5),
        (contrasted, ImageEnhance.Contrast, 1.5),
    ):
        for factor in (0.4, 1, 1.4):
            (found,) = change(given, torch.tensor([factor]))
            expected = np.asarray(enhancer(picture).enhance(factor), np.float32)
            assert np.abs(array(found) - expected).max() <= tolerance


def test_blur_is_pillows():
    picture = smooth(112)
    (found,) = blurred(tensor(picture).float(), torch.tensor([1.5]))
    expected = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)), np.float32)
    inside = slice(8, -8)
    assert np.abs(array(found) - expected)[inside, inside].mean() < 1
    (flat,) = blurred(torch.full((1, 3, 112, 112), 77.0), torch.tensor([2.0]))
    assert flat.min().item() == pytest.approx(77, abs=0.01)


def test_pictures_of_few_pixels_are_coarse():
    pictures = tensor(smooth(112)).expand(4, -1, -1, -1).float()
    found = coarsened(pictures, torch.tensor([1.0, 40, 97, 500]))
    lost = (found - pictures).abs().mean((1, 2, 3)).tolist()
    assert lost[0] > lost[1] > lost[2] > lost[3] == 0


def test_bars_lie_at_opposite_sides():
    found = barred(torch.full((400, 3, 112, 112), 500.0), chance())  # no colour of a bar
    bars = found[:, 0] != 500
    assert (found.amax(1) == found.amin(1)).all()
    assert bars.any((1, 2)).float().mean() > 0.9
    rows, columns = bars.all(2), bars.all(1)
    upright = columns.any(1) & ~rows.any(1)
    assert 0.4 < upright.float().mean() < 0.6
    most = int(BAR * 112) + 1
    assert not bars[:, most:-most, most:-most].any()
    for picture, is_bar in zip(found[:, 0], bars, strict=True):
        assert len(picture[is_bar].unique()) <= 1
        assert not is_bar.any() or 0 <= picture[is_bar].max() <= 255


def test_what_lies_over_a_picture_is_small():
    found = covered(torch.full((400, 3, 112, 112), 500.0), chance())
    share = (found[:, 0] != 500).float().mean((1, 2))
    assert 0 < share.max() < 0.4 * 0.3 + 0.02
    assert found[found != 500].max() <= 255


def test_other_colours_are_the_same_for_all_windows_of_a_photo():
    pictures = tensor(smooth(16)).expand(300, -1, -1, -1).float()
    one, other = recoloured((pictures, pictures.flip(3)), 0.4, chance())
    assert torch.equal(one, other.flip(3))
    changed = (one != pictures).any((1, 2, 3))
    assert 0.3 < changed.float().mean() < 0.5
    plain = torch.full((300, 3, 4, 4), 100.0)
    (found,) = recoloured((plain,), 1, chance())
    spread = found.amax(1) - found.amin(1)
    assert spread.median() < 1  # grey stays grey


def test_mirrored():
    pictures = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()
    found = mirrored(pictures, torch.tensor([False, True]))
    assert torch.equal(found[0], pictures[0])
    assert torch.equal(found[1], pictures[1].flip(2))


def test_worn_pictures_are_changed_but_not_beyond_recognition():
    pictures = tensor(smooth(112)).expand(200, -1, -1, -1).float()
    found = worn(pictures, torch.full((200, 2), 150.0), chance())
    assert found.shape == pictures.shape
    assert 0 <= found.min() <= found.max() <= 255
    assert torch.isfinite(found).all()
    difference = (found - pictures).abs().mean((1, 2, 3))
    assert difference.min() > 0.5
    assert 15 < difference.median() < 70
    similar = [
        np.corrcoef(array(a).ravel(), array(b).ravel())[0, 1]
        for a, b in zip(found, pictures, strict=True)
    ]
    assert np.median(similar) > 0.8


# Pairs


def photos_of(*pictures):
    canvases = torch.cat([tensor(picture) for picture in pictures])
    return Photos(canvases, torch.full((len(pictures), 2), float(SIDE)))


def test_pairs_follow_from_the_seed():
    photos, settings = photos_of(smooth(SIDE), smooth(SIDE, 1)), PairSettings(32)
    one, same, other = (draw_pairs(photos, settings, chance(seed)) for seed in (1, 1, 2))
    for name in ("chunks", "queries", "others"):
        part = getattr(one, name)
        assert part.shape == (2, 3, 32, 32)
        assert part.dtype == torch.uint8
        assert torch.equal(part, getattr(same, name))
        assert not torch.equal(part, getattr(other, name))


def test_many_photos_are_drawn_in_portions():
    photos = photos_of(smooth(SIDE))
    many = Photos(
        photos.canvases.expand(AT_A_TIME + 3, -1, -1, -1), photos.sizes.expand(AT_A_TIME + 3, -1)
    )
    assert len(draw_pairs(many, PairSettings(16), chance()).queries) == AT_A_TIME + 3


def test_both_windows_of_a_pair_show_the_same_place(monkeypatch):
    """Their mean colours are close, compared with those of other pairs."""
    monkeypatch.setattr("training.pairs.worn", lambda pictures, extents, chance: pictures)
    photos = photos_of(*(smooth(SIDE, seed) for seed in range(40)))
    pairs = draw_pairs(photos, PairSettings(32, recoloured=0), chance())
    chunks, queries, others = (
        part.float().mean((2, 3)) for part in (pairs.chunks, pairs.queries, pairs.others)
    )
    distances = torch.cdist(chunks, queries)
    assert distances.diag().median() < distances.median() / 2
    assert torch.cdist(others, queries).diag().median() > 1.5 * distances.diag().median()


def test_chance():
    random = chance()
    assert 2 <= random.uniform(2, 3, 1000).min() < 2.1
    logarithms = random.log_uniform(1, 100, 4000).log10()
    assert logarithms.mean().item() == pytest.approx(1, abs=0.05)
    assert random.normal(3, 4000).std().item() == pytest.approx(3, rel=0.1)
    assert random.happens(0.2, 4000).float().mean().item() == pytest.approx(0.2, abs=0.03)
    orders = random.orders(5, 49)
    assert (orders.sort(1).values == torch.arange(49)).all()
    assert len({tuple(row) for row in orders.tolist()}) == 5


def smooth(size, seed=0):
    """A picture of soft spots."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def array(picture):
    return picture.permute(1, 2, 0).numpy()
