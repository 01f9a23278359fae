"""File names of parts: every spelling is read, and none is a reason to refuse a photo."""

import asyncio
import base64
import unicodedata
from email import base64mime, quoprimime
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from deployments.errors import BadParameter
from deployments.ingress.bodies import read_images
from deployments.ingress.filenames import MAX_FILENAME, MAX_PIECES, read_filename, tidy
from tests.support.running.examples import examples

NAME = "写真 é.png"
PERCENT = "%E5%86%99%E7%9C%9F%20%C3%A9.png"
WORD = f"=?utf-8?B?{base64.b64encode(NAME.encode()).decode()}?="


def read(disposition):
    """Return the images of a body with one part."""
    body = b"--b\r\nContent-Disposition: form-data; %b\r\n\r\nx\r\n--b--\r\n" % disposition

    async def receive():
        return {"type": "http.request", "body": body}

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    request = Request({"type": "http", "headers": headers}, receive)
    images, _ = asyncio.run(read_images(request, 1000, frozenset({"metadata"})))
    return images


def sent(parameters):
    """Return the name of a part, or None."""
    if isinstance(parameters, str):
        parameters = parameters.encode()
    (image,) = read(b"name=file; " + parameters)
    assert asyncio.run(image.read()) == b"x"
    return image.filename


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        # In UTF-8, as browsers send it; with what would end the name escaped.
        (f'filename="{NAME}"', NAME),
        ("filename=a.png", "a.png"),
        ('FileName="a.png"', "a.png"),
        ('filename="%22a%22%0D%0A.png"', '"a"\r\n.png'),
        ('filename="100%25 %41.png"', "100%25 %41.png"),  # browsers don't escape the percent sign
        (r'filename="\"a\".png"', '"a".png'),
        ('filename="a;b=c.png"', "a;b=c.png"),
        (b'filename="caf\xe9.png"', "café.png"),
        ('filename=""', None),
        # Old browsers sent the whole path.
        (r'filename="C:\fakepath\x.jpg"', "x.jpg"),
        ('filename="/home/me/x.jpg"', "/home/me/x.jpg"),
        # RFC 8187, alone and beside the plain name.
        (f"filename*=utf-8''{PERCENT}", NAME),
        (f"filename*=UTF-8'ja'{PERCENT}", NAME),
        (f"FILENAME* = \"UTF-8''{PERCENT}\"", NAME),
        (f"filename=b.png; filename*=utf-8''{PERCENT}", NAME),
        (f"filename*=utf-8''{PERCENT}; filename=b.png", NAME),
        (f"filename=\"{WORD}\"; filename*=utf-8''{PERCENT}", NAME),
        ("filename*=iso-8859-1''caf%E9.png", "café.png"),
        ("filename*=windows-1251''%F4%EE%F2%EE.jpg", "фото.jpg"),
        ("filename*=caf%C3%A9.png", "café.png"),  # without a charset, which is wrong, but clear
        # In pieces, as RFC 2231 has it.
        ("filename*0*=utf-8''%E5%86; filename*1*=%99; filename*2=.png", "写.png"),
        ('filename*0="long "; filename*1="name.png"', "long name.png"),
        # RFC 2047.
        (f'filename="{WORD}"', NAME),
        ('filename="=?utf-8?Q?caf=C3=A9_1.png?="', "café 1.png"),
        ('filename="=?ISO-8859-1?q?caf=E9?=.png"', "café.png"),
        ('filename="=?utf-8?B?5YaZ?= =?utf-8?B?55yf?= =?utf-8?Q?.png?="', "写真.png"),
        ('filename="=?utf-8?B?5YY=?= =?utf-8?B?mQ==?="', "写"),  # a character in two words
        ('filename="IMG =?utf-8?B?5YaZ?= 1.png"', "IMG 写 1.png"),
    ],
)
def test_a_name_is_read_in_every_spelling(parameters, name):
    assert sent(parameters) == name


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ("filename*=utf-8''%E5%86.png", "å\x86.png"),  # as raw bytes: Latin-1, if not UTF-8
        ("filename=b.png; filename*=utf-8''%E5%86.png", "b.png"),
        ("filename*=klingon''a%20b.png", "a b.png"),
        ("filename=b.png; filename*=klingon''a.png", "b.png"),
        ("filename*=punycode''a-zz9.png", "a-zz9.png"),
        ("filename*=utf-8''%ZZ.png", "%ZZ.png"),
        ("filename*=utf-8''", None),
        ("filename=b.png; filename*=utf-8''", "b.png"),
        ("filename*", None),
        ("filename*=utf-8''a; filename*0=b", None),  # pieces that don't fit together
        ("filename=b.png; filename*=utf-8''a; filename*0=b", "b.png"),
        ('filename="=?utf-8?B?5Y?="', "=?utf-8?B?5Y?="),
        ('filename="=?klingon?B?5YaZ?="', "=?klingon?B?5YaZ?="),
        ('filename="=?utf-8?B?"', "=?utf-8?B?"),
        ('filename="?="', "?="),
        ('filename="=?utf-8?Q?=ED=A0=80?="', "=?utf-8?Q?=ED=A0=80?="),
        ('filename="=?unicode-escape?Q?=5Cud800?="', "?"),  # half of a surrogate pair
    ],
)
def test_a_broken_spelling_costs_the_name_and_not_the_photo(parameters, name):
    assert sent(parameters) == name


def test_a_text_stays_a_text():
    """`filename*` within a name is none, and metadata must have no name."""
    assert sent('filename="filename*.png"') == "filename*.png"
    metadata = b"name=metadata; filename*=utf-8''a.json\r\n\r\n{}"
    with pytest.raises(BadParameter, match="'metadata' has a filename"):
        read(
            b"name=file; filename=a\r\n\r\nx\r\n--b\r\nContent-Disposition: form-data; " + metadata
        )


def test_a_header_with_too_many_parameters_is_a_problem():
    """Splitting it would take seconds for a thousand parts."""
    assert sent("filename=a.png" + "; x=y" * (MAX_PIECES - 2)) == "a.png"
    with pytest.raises(BadParameter, match=f"more than {MAX_PIECES} parameters"):
        read(b"name=file; filename=a.png" + b"; x=y" * MAX_PIECES)


def in_browsers_spelling(name):
    for character, escape in {'"': "%22", "\r": "%0D", "\n": "%0A"}.items():
        name = name.replace(character, escape)
    return f'filename="{name}"'


def in_quoted_pairs(name):
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'filename="{escaped}"'


def in_words(name, encode, size):
    """Spell a name in encoded words of so many bytes; a character may lie in two of them."""
    data = name.encode()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return f'filename="{" ".join(encode(piece, "utf-8") for piece in pieces)}"'


texts = st.text(max_size=60).filter(bool)


@given(texts)
@settings(max_examples=examples(200))
def test_names_come_back_from_rfc_8187(name):
    assert sent(f"filename*=utf-8''{quote(name, safe='')}") == tidy(name)
    both = f"filename*=UTF-8''{quote(name, safe='')}; {in_browsers_spelling('other.png')}"
    assert sent(both) == tidy(name)


@given(texts)
def test_names_come_back_from_rfc_8187_in_latin_1(name):
    name = name.encode("latin-1", "ignore").decode("latin-1")
    assume(name)
    assert sent(f"filename*=iso-8859-1''{quote(name.encode('latin-1'), safe='')}") == tidy(name)


# Names that say something else in this spelling: escapes and encoded words that are meant as they
# are, backslashes that old browsers sent, and the ends of lines.
plain = texts.filter(lambda name: not any(mark in name for mark in ("%22", "%0", "=?", "\\")))


@given(plain)
@settings(max_examples=examples(200))
def test_names_come_back_from_browsers(name):
    assert sent(in_browsers_spelling(name)) == tidy(name)


@given(texts.filter(lambda name: not any(mark in name for mark in ("%", "=?", "\r", "\n"))))
def test_names_come_back_from_quoted_pairs(name):
    # What looks like a path of Windows is cut, and the end of a name isn't told from a quote.
    assume(name[1:3] != ":\\" and name[:2] != "\\\\" and not name.endswith("\\"))
    assume("\\\\" not in name and '\\"' not in name)
    assert sent(in_quoted_pairs(name)) == tidy(name)


@pytest.mark.parametrize("encode", [base64mime.header_encode, quoprimime.header_encode])
@given(texts, st.integers(20, 60))
@settings(max_examples=examples(200))
def test_names_come_back_from_encoded_words(encode, name, size):
    assert sent(in_words(name, encode, size)) == tidy(name)


@given(
    st.text("filename*=utf-8'\"\\;?%= 0123456789ABQ?äé\r\n", max_size=80) | st.text(),
    st.binary(max_size=80)
    | st.lists(
        st.sampled_from(
            [b"filename", b"*", b"0", b"1", b"=", b";", b'"', b"utf-8", b"''", b"%C3", b"\\", b" "]
        ),
        max_size=30,
    ).map(b"".join),
)
@settings(max_examples=examples(1000))
def test_nothing_makes_it_fail(plain, disposition):
    name = read_filename(plain, b"form-data; name=file; " + disposition)
    name.encode()
    assert len(name) <= MAX_FILENAME
    assert name == tidy(name)


@given(st.text(st.characters(exclude_categories=[])))
def test_names_are_kept_in_one_spelling(name):
    for form in ("NFC", "NFD"):
        assert tidy(unicodedata.normalize(form, name)) == tidy(name)


def test_a_long_name_is_cut():
    assert tidy("é" * 5000) == "é" * MAX_FILENAME
    assert sent(f"filename={'x' * 4000}") == "x" * MAX_FILENAME
