"""What was found and what was not, and the query over the photo that contains it.

The answers are made up, so that they are the same whatever the verifier sees.
"""

from __future__ import annotations

import io
import re

import pytest
from common.answers import notice
from PIL import Image
from playwright.sync_api import Page, expect

from tests.support.page.verified import (
    Corners,
    answer_of,
    answering,
    finding,
    found_nowhere,
    looked_nowhere,
    quad_of,
    too_plain,
    verify,
    verify_cup,
)
from tests.support.page.visitor import (
    PHOTO,
    RESULTS,
    cards,
    crop_of,
    expect_box,
    names,
    open_photo,
    the_cup,
    upload,
)
from tests.support.photos.pictures import encode

COLOURS = {
    "red": "#f00000",
    "green": "#00c800",
    "blue": "#0000f0",
    "yellow": "#f0f000",
    "pink": "#ff00ff",
}
ALL = ["red", "green", "blue", "yellow"]
SIZE = 120, 80
PLACE = [150, 60, 390, 220]


def four_colours(frame: int = 0) -> bytes:
    """A picture of four colours, from the top left clockwise, in a pink frame."""
    width, height = SIZE
    picture = Image.new("RGB", (width + 2 * frame, height + 2 * frame), COLOURS["pink"])
    for name, x, y in zip(ALL, (0, 1, 1, 0), (0, 0, 1, 1), strict=True):
        box = (frame + x * width // 2, frame + y * height // 2)
        picture.paste(COLOURS[name], (*box, box[0] + width // 2, box[1] + height // 2))
    return encode(picture)


def search(page: Page, data: bytes) -> None:
    page.goto("/")
    page.set_input_files("#search-file", upload(data, "query.png", "image/png"))
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    expect(cards(page)).to_have_count(3)


def test_what_was_found_stands_above_what_looks_alike(page, library, photos):
    record, cup = the_cup(library)
    answering(page, verify_cup(cup))
    search(page, crop_of(photos, "coffee.png", cup))
    expect(page.get_by_role("heading", name="Found in 1 photo")).to_be_visible()
    expect(page.locator("#found-note")).to_have_text(re.compile(r"among 3 photos, in \d+\.\d\d s$"))
    (card,) = page.locator("#found-grid .card").all()
    words = "mirrored, turned by 90°, 1.5 \N{MULTIPLICATION SIGN} larger here"
    expect(card.locator(".caption")).to_contain_text(words)
    expect(page.get_by_role("link", name=f"coffee.png, {words}")).to_be_visible()
    expect(card.locator("img")).to_have_js_property("complete", True)
    # A polygon, and nothing else, where it is.
    expect(card.locator(".box")).to_have_count(1)
    expect_box(card.locator("polygon.line"), record, cup, 0.99)
    expect(page.locator("#live")).to_have_text("Found in 1 photo. The first is coffee.png.")

    # The others are folded, until somebody wants them.
    fold = page.get_by_role("button", name="Looks alike")
    expect(fold).to_have_attribute("aria-expanded", "false")
    expect(page.locator("#results-grid")).to_be_hidden()
    expect(page.get_by_label("Similarity at least")).to_be_hidden()
    fold.focus()
    page.keyboard.press("Enter")
    expect(fold).to_have_attribute("aria-expanded", "true")
    expect(page.locator("#results-grid .card:visible")).to_have_count(2)
    # The slider counts for them, and not for what is certain.
    page.get_by_label("Similarity at least").fill("0.99")
    expect(page.locator("#results-grid .card")).to_have_count(0)
    expect(page.locator("#results-none")).to_contain_text("Move the slider to the left")
    expect(page.locator("#found-grid .card:visible")).to_have_count(1)
    page.keyboard.press("Home")
    expect(page.locator("#results-grid .card")).to_have_count(2)
    fold.click()
    expect(page.locator("#results-grid")).to_be_hidden()


def test_more_is_shown_where_all_that_came_was_found(page, library, photos):
    """As with many copies: what looks alike comes after them."""
    _, cup = the_cup(library)

    def all_found(matches):
        kept = [verify(match, quad_of([0, 0, 100, 100]), [0, 0, 100, 100]) for match in matches]
        return answer_of(kept, True)

    answering(page, all_found)
    search(page, crop_of(photos, "coffee.png", cup))
    expect(page.get_by_role("heading", name="Found in 3 photos")).to_be_visible()
    expect(page.get_by_role("button", name="Looks alike")).to_be_hidden()
    expect(page.locator("#results-none")).to_be_hidden()
    more = page.get_by_role("button", name="Show more")
    expect(more).to_be_hidden()

    def full(matches):
        return all_found(
            [match | {"id": f"{match['id']}-{n}"} for n in range(8) for match in matches]
        )

    answering(page, full)
    page.set_input_files("#search-file", upload(four_colours(), "other.png", "image/png"))
    expect(cards(page)).to_have_count(24)
    expect(more).to_be_visible()


def test_what_was_not_found_is_said_and_the_others_are_shown(page, library, photos):
    _, cup = the_cup(library)
    answering(page, found_nowhere)
    search(page, crop_of(photos, "coffee.png", cup))
    expect(page.get_by_role("heading", name="Not found among 3 photos")).to_be_visible()
    fold = page.get_by_role("button", name="These look alike")
    expect(fold).to_have_attribute("aria-expanded", "true")
    expect(page.locator("#results-grid .card:visible")).to_have_count(3)
    sentence = "Not found among 3 photos. The nearest is coffee.png."
    expect(page.locator("#live")).to_have_text(sentence)
    fold.click()
    expect(page.locator("#results-grid")).to_be_hidden()
    # Another search begins anew.
    page.set_input_files("#search-file", upload(four_colours(), "other.png", "image/png"))
    expect(page.locator("#query-caption")).to_have_text("other.png")
    expect(page.locator("#results-grid .card:visible")).to_have_count(3)


def test_where_nobody_looked_there_is_one_list(page, library, photos):
    _, cup = the_cup(library)
    crop = crop_of(photos, "coffee.png", cup)
    answering(page, looked_nowhere)
    search(page, crop)
    expect(page.locator("#results-count")).to_have_text(re.compile(r"^3 photos in \d+\.\d\d s$"))
    for hidden in ("#found", "#results-fold", "#results-plain"):
        expect(page.locator(hidden)).to_be_hidden()
    # Because it is too plain, for example: that is said in words.
    answering(page, too_plain)
    search(page, crop)
    expect(page.locator("#results-plain")).to_contain_text("too plain to tell")
    expect(page.locator("#results-grid .card:visible")).to_have_count(3)


def test_only_what_is_seen_comes_next(page, library, photos):
    _, cup = the_cup(library)
    answering(page, verify_cup(cup))
    search(page, crop_of(photos, "coffee.png", cup))
    open_photo(page, "coffee.png", RESULTS)
    expect(page.get_by_role("button", name="Next")).to_be_hidden()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Looks alike").click()
    alike = names(page.locator("#results-grid"))
    open_photo(page, "coffee.png", RESULTS)
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#viewer-name")).to_have_text(alike[0])
    # There it was not found.
    expect(page.locator("#compare")).to_be_hidden()
    expect(page.locator("#canvas .laid")).to_have_count(0)
    expect(page.locator("#canvas .box")).not_to_have_count(0)


def test_what_was_found_is_a_part_to_search_with(page, library):
    record, cup = the_cup(library)
    answering(page, finding("coffee.png", quad_of(cup, turns=1), cup, turns=1))
    page.goto(f"/?id={record['id']}&box={','.join(map(str, cup))}&photo={record['id']}")
    expect(page.locator("#compare")).to_be_visible()
    expect(page.locator("#canvas .box")).to_have_count(1)
    expect_box(page.locator("#canvas polygon.line"), record, cup, 0.99)
    for fact in ("Foundall of the query", "Agreeing40 places", "Turned90° clockwise"):
        expect(page.locator("#facts")).to_contain_text(fact)
    page.locator(".part", has_text="found here").click()
    expect_box(page.locator("#canvas .marked .line"), record, cup, 0.99)
    page.get_by_label("Found here").uncheck()
    expect(page.locator("#canvas .box")).to_have_count(0)
    page.get_by_label("Matches").check()
    expect(page.locator("#canvas .box")).to_have_count(5)


MATCH = {"coverage": 1, "mirrored": False, "rotation": 0, "scale": 1, "part": [0, 0, 40, 30]}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"coverage": 0.47},
        {"coverage": 0.8, "mirrored": True, "rotation": -91.9},
        {"coverage": 0.004, "rotation": -178.2},
        {"part": [0, 10, 40, 25], "rotation": 36.6},
        {"rotation": 5, "scale": 1.24},
        {"scale": 2.96},
        {"scale": 12.3},
        {"scale": 0.7},
    ],
)
def test_scripts_use_the_same_words(page, library, changes):
    match = MATCH | changes
    page.goto("/?view=browse")
    words = page.evaluate(
        """async ([match, size]) => {
          const { noticed } = await import("/page/found.js");
          return noticed(match, size);
        }""",
        [match, {"width": 40, "height": 30}],
    )
    plain = [word.replace(" %", "%").replace("\N{MULTIPLICATION SIGN}", "x") for word in words]
    assert plain == notice(match, (40, 30))


def colour_at(page: Page, record: dict, x: float, y: float) -> str:
    """The name of the colour at a pixel of the photo, as it is seen; "photo" if it is none."""
    seen = page.locator(PHOTO).bounding_box()
    scale = seen["width"] / record["width"]
    clip = {"x": seen["x"] + x * scale, "y": seen["y"] + y * scale, "width": 1, "height": 1}
    with Image.open(io.BytesIO(page.screenshot(clip=clip))) as shot:
        pixel = shot.convert("RGB").getpixel((0, 0))
    for name, colour in COLOURS.items():
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        if max(abs(one - other) for one, other in zip(pixel, wanted, strict=True)) < 30:
            return name
    return "photo"


def colours_in(page: Page, record: dict, quad: Corners, share: float = 0.25) -> list[str]:
    """The colours that are seen near the corners of a quad, on the way to its middle."""
    middle = [sum(corner[axis] for corner in quad) / 4 for axis in (0, 1)]
    points = [
        [corner[axis] + share * (middle[axis] - corner[axis]) for axis in (0, 1)] for corner in quad
    ]
    return [colour_at(page, record, *point) for point in points]


def lay(page: Page, quad: Corners, part: list[int], data: bytes, **how) -> None:
    """Search, open the photo that was found, and lay all of the query over it."""
    answering(page, finding("coffee.png", quad, part, **how))
    search(page, data)
    open_photo(page, "coffee.png", RESULTS)
    expect(page.locator("#compare")).to_be_visible()
    page.locator("#compare-share").fill("100")
    page.get_by_label("Found here").uncheck()  # its lines would be seen too


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_the_query_lies_on_its_place(page, library, turns, mirrored):
    quad = quad_of(PLACE, turns=turns, mirrored=mirrored)
    part = [0, 0, *SIZE]
    lay(page, quad, part, four_colours(), turns=turns, mirrored=mirrored)
    # Each corner of the query is seen at the corner of the quad, however that is turned.
    assert colours_in(page, library["coffee.png"], quad) == ALL


def test_the_query_is_bent_to_its_place_and_its_frame_is_left_out(page, library):
    """What was cut off the query isn't there; and perspective may bend the rest."""
    record = library["coffee.png"]
    quad = [[160, 60], [420, 90], [390, 250], [120, 190]]
    lay(page, quad, [30, 30, 30 + SIZE[0], 30 + SIZE[1]], four_colours(frame=30))
    for share in (0.05, 0.3, 0.6):
        assert colours_in(page, record, quad, share) == ALL
    assert colours_in(page, record, quad, -0.1) == 4 * ["photo"]
    # It stays there when the photo is zoomed and moved.
    page.get_by_role("button", name="Zoom to it").click()
    assert colours_in(page, record, quad, 0.05) == ALL
    page.locator("#stage").focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowDown")
    assert colours_in(page, record, quad, 0.6) == ALL


def test_a_line_between_query_and_photo_is_moved(page, library):
    record = library["coffee.png"]
    quad = quad_of(PLACE)
    lay(page, quad, [0, 0, *SIZE], four_colours())
    slider = page.get_by_label("How much of the query lies over the photo")
    slider.fill("50")
    half = ["red", "photo", "photo", "yellow"]
    assert colours_in(page, record, quad) == half
    expect(slider).to_have_attribute("aria-valuetext", "50 % of the query")
    slider.fill("0")
    assert colours_in(page, record, quad) == 4 * ["photo"]
    # By keyboard: and its keys do nothing else.
    slider.focus()
    page.keyboard.press("PageUp")
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_value("11")
    expect(page.locator("#viewer-name")).to_have_text("coffee.png")
    # By mouse, at the line itself: that draws no rectangle.
    grip = page.locator(".wipe-grip").bounding_box()
    scale = page.locator(PHOTO).bounding_box()["width"] / record["width"]
    x, y = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 30)
    page.mouse.move(x + 0.8 * (PLACE[2] - PLACE[0]) * scale, y)
    page.mouse.up()
    assert int(slider.input_value()) == pytest.approx(91, abs=1)
    assert colours_in(page, record, quad) == ALL
    expect(page.locator("#canvas .marked .line")).to_have_count(0)
    # And away with it.
    page.get_by_label("Lay the query over it").uncheck()
    assert colours_in(page, record, quad) == 4 * ["photo"]
    expect(slider).to_be_hidden()
    page.get_by_label("Lay the query over it").check()
    assert colours_in(page, record, quad) == ALL


def test_a_query_beyond_the_photo_is_laid_as_far_as_the_photo_goes(page, library):
    record = library["coffee.png"]
    quad = quad_of([-200, 100, 200, 300])
    lay(page, quad, [0, 0, *SIZE], four_colours())
    expect(page.locator("#facts")).to_contain_text("Foundhalf of the query")
    at = [(50, 150), (150, 150), (150, 250), (50, 250), (250, 200)]
    seen = ["green", "green", "blue", "blue", "photo"]
    assert [colour_at(page, record, *point) for point in at] == seen
    # Half of what is seen, not half of the query, of which nothing more would be seen.
    page.locator("#compare-share").fill("50")
    seen = ["green", "photo", "photo", "blue", "photo"]
    assert [colour_at(page, record, *point) for point in at] == seen


def test_a_part_of_a_stored_photo_is_laid_over_another(page, library):
    """The part that was searched with, cut out of the whole photo."""
    from_photo, over = library["astronaut.png"], library["coffee.png"]
    box = [180, 60, 300, 180]
    quad = quad_of([100, 100, 220, 220])
    answering(page, finding("coffee.png", quad, box))
    page.goto(f"/?id={from_photo['id']}&box={','.join(map(str, box))}&photo={over['id']}")
    expect(page.locator("#compare")).to_be_visible()
    page.locator("#compare-share").fill("100")
    piece = page.locator(".laid-piece img")
    expect(piece).to_have_js_property("complete", True)
    laid, under = piece.bounding_box(), page.locator(PHOTO).bounding_box()
    scale = under["width"] / over["width"]
    assert laid["width"] == pytest.approx(from_photo["width"] * scale, abs=1)
    for axis, side in enumerate("xy"):
        place = (quad[0][axis] - box[axis]) * scale
        assert laid[side] - under[side] == pytest.approx(place, abs=1)


def test_a_picture_that_no_browser_shows_is_not_laid(page, library):
    page.goto("/")
    data = encode(Image.new("RGB", SIZE, COLOURS["red"]), "TIFF")
    answering(page, finding("coffee.png", quad_of(PLACE), [0, 0, *SIZE]))
    page.set_input_files("#search-file", upload(data, "query.tiff", "image/tiff"))
    expect(cards(page)).to_have_count(3)
    open_photo(page, "coffee.png", RESULTS)
    expect(page.locator("#canvas .best")).to_have_count(1)
    expect(page.locator("#compare")).to_be_hidden()
