"""Read the file name of a multipart part, in each spelling that clients send.

A name is for people, and never a path. So no spelling is a reason to refuse a photo: what can't be
decoded is kept as it was sent.

| spelling | who sends it |
|---|---|
| `filename="a.png"` in UTF-8 or Latin-1, with `%22` or quoted pairs | browsers, curl |
| `filename*=utf-8''a.png` (RFC 8187), also in pieces (RFC 2231) | .NET, older Python clients |
| `filename="=?utf-8?B?YS5wbmc=?="` (RFC 2047) | .NET beside the one above, mail programs |

Of a path of Windows in the first spelling, which old browsers sent, Starlette's parser has cut off
the folders. What other spellings say is kept whole.
"""

from __future__ import annotations

import encodings
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from pkgutil import iter_modules

from deployments.metadata import normalised

MAX_FILENAME = 1000  # characters
# Parameters of a header, and encoded words of a name. Splitting them takes time that grows with the
# square of their number. The longest name that a disk can hold is sent in forty pieces.
MAX_PIECES = 64

# The charsets that Python has. Any other name it would look for on disk, and remember for ever. Of
# these two, which are for the names of computers, a header takes milliseconds.
_CHARSETS = (
    encodings.aliases.aliases.keys() | {module.name for module in iter_modules(encodings.__path__)}
) - {"idna", "punycode"}

# What browsers write for characters that would end the name. They don't escape the percent sign, so
# nothing else that looks like an escape is one.
_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}


def tidy(name: str) -> str:
    """Return a name as it is kept: in Unicode NFC, without lone surrogates, and not too long."""
    return normalised(name.encode("utf-8", "replace").decode())[:MAX_FILENAME]


def read_filename(plain: str, disposition: bytes) -> str:
    """Return the file name of a part; it is empty if the part has none.

    Args:
        plain: the value of `filename`, without quotes; empty if there is none.
        disposition: the part's header `Content-Disposition`, with at most `MAX_PIECES` parameters.
            If it has `filename*` as well, that counts, unless it can't be decoded.
    """
    extended = _read_extended(disposition, known=bool(plain))
    return tidy(_read_plain(plain) if extended is None else extended)


def has_extended(disposition: bytes) -> bool:
    """Return whether a header may have a `filename*`, whole or in pieces."""
    return b"filename*" in disposition.lower()


def _read_plain(name: str) -> str:
    for escape, character in _ESCAPES.items():
        name = name.replace(escape, character)
    if not 0 < name.count("=?") <= MAX_PIECES:
        return name
    try:
        return "".join(
            # Text beside encoded words comes without a charset, and in this one.
            piece if isinstance(piece, str) else _decode(piece, charset or "raw-unicode-escape")
            for piece, charset in decode_header(name)
        )
    except (HeaderParseError, LookupError, ValueError):
        return name


def _read_extended(disposition: bytes, known: bool) -> str | None:
    """Return the name in `filename*`; None if the plain name counts.

    Args:
        known: there is a plain name.
    """
    if not has_extended(disposition):
        return None
    header = Message()
    header["Content-Disposition"] = disposition.decode("latin-1")
    try:
        parameters = header.get_params([], "Content-Disposition")
    except Exception:  # pieces that don't fit together: no name is worth a photo
        return None
    values = [value for name, value in parameters if name == "filename"]
    value = values[-1] if values else ""  # the plain name comes first
    if not isinstance(value, tuple):
        return None if known else _read_plain(value)  # in pieces that aren't encoded
    charset, _, text = value  # the percent-escapes are decoded, to a character for each byte
    try:
        decoded = _decode(text.encode("latin-1"), charset or "utf-8")
    except (LookupError, ValueError):
        decoded = "" if known else text
    return None if known and not decoded else decoded


def _decode(data: bytes, charset: str) -> str:
    """Decode a name.

    Raises:
        LookupError: there is no such charset.
        ValueError: it isn't written in it.
    """
    if encodings.normalize_encoding(charset).lower() not in _CHARSETS:
        raise LookupError(charset)
    return data.decode(charset)
