"""What parts of odd HTTP requests may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

DISPOSITION = b'Content-Disposition: form-data; name="file"; filename="photo.png"'
LONG = "a" * 9000
DIGITS = "9" * 5000  # more than `int` reads

# Any header may have these.
ANY_VALUE = (
    *("", " ", "\t", ",", ";", "=", '"', "\\", "\0", "\x7f", "\x0b", "é", "1", "*", "null"),
    *("%00", "a\r\n b", "a\rb", "a\nb", LONG, DIGITS, ",".join("a" * 500)),
)
# Bytes that are no UTF-8.
NO_UTF_8 = (b"\xff", b"a\xffb", b"\xed\xa0\x80", b"\xc3")
DATES = ("Thu, 01 Jan 1970 00:00:00 GMT", "Sat, 99 Foo 99999 99:99:99 GMT", "0", "9" * 40)
TAGS = ("*", '"x"', 'W/"x"', '"', '"a', 'W/"', '"a","b" , *', '"a" "b"', '"x",' * 500)
RANGES = (
    *("bytes=0-0", "bytes=-1", "bytes=5-", "bytes=0-0,2-3", "bytes=10-5", "bytes=-0", "bytes=-"),
    *(
        "bytes=99999999999999999999-",
        "bytes=\N{SUPERSCRIPT TWO}-",
        f"bytes=0-{DIGITS}",
        "items=0-1",
    ),
    *(f"bytes=-{DIGITS}", "bytes=" + "0-0," * 500, "bytes= 0 - 1 ", "BYTES=0-1", "bytes=+1-2"),
)
HEADERS: Mapping[str, Sequence[str]] = {
    "Host": (
        *("evil.example", "localhost:99999", "[::1]", "[::1", "a@localhost", "127.0.0.1:", "127.1"),
        *("LOCALHOST.", "localhost:80:80", "2130706433", "[::ffff:127.0.0.1%25a]", "[v1.a]"),
        *("localhost/", "localhost#", "local\N{FULLWIDTH LATIN SMALL LETTER H}ost", "localhost:²"),
    ),
    "Origin": (
        *(
            "null",
            "http://localhost",
            "http://localhost:99999",
            "http://[::1",
            "http://evil.example",
        ),
        *(
            "https://localhost:a",
            "http://",
            "//localhost",
            "http://localhost:²",
            "http://[localhost]",
        ),
    ),
    "Sec-Fetch-Site": ("cross-site", "same-site", "same-origin", "none"),
    "Sec-Fetch-Mode": ("navigate", "cors", "no-cors"),
    "Sec-Fetch-Dest": ("document", "image", "iframe"),
    "Range": RANGES,
    "If-None-Match": TAGS,
    "If-Match": TAGS,
    "If-Range": (*TAGS, *DATES),
    "If-Modified-Since": DATES,
    "Accept": ("application/x-ndjson", "application/x-ndjson;q=0", "*/*;q=x", "a/b," * 500),
    "Accept-Encoding": ("gzip", "gzip;q=0", "identity;q=0, *;q=0", "br"),
    "Content-Type": (
        *("image/png; charset=punycode", "image/*", "image/", "text/plain", "application/json"),
        *(
            "multipart/form-data",
            "multipart/form-data; boundary=",
            'multipart/form-data; boundary="',
        ),
        *(
            "multipart/form-data; boundary=inset-fuzz; charset=punycode",
            "multipart/mixed; boundary=a",
        ),
        *("multipart/form-data; boundary=inset-fuzz; charset=idna", "image/png; charset=undefined"),
        *("multipart/form-data; boundary*=utf-16''%ff", "multipart/form-data; boundary=é"),
        *(f"multipart/form-data; boundary={LONG}", "application/x-www-form-urlencoded"),
    ),
    "Content-Length": (
        *("0", "1", "-1", "+4", "4, 4", "0x4", "1e3", "²", "4 4", "1000000", "268435457"),
        *("99999999999999999999", "18446744073709551617"),
    ),
    "Transfer-Encoding": ("chunked", "identity", "gzip", "gzip, chunked", "xchunked", "Chunked"),
    "Content-Encoding": ("gzip", "br", "identity"),
    "Authorization": (
        *(
            "Bearer",
            "Bearer ",
            "Bearer inset_x",
            "Basic YTpi",
            f"Bearer inset_{'a' * 43}",
            "bearer é",
        ),
        f"Bearer {LONG}",
    ),
    "Cookie": ("inset_key", "inset_key=", "inset_key=inset_x", "=;;;=,", f"inset_key={LONG}"),
    "X-Request-Id": ("mine", "a b", "a" * 128, "a" * 129, "a%0d%0ab", "\N{CAT FACE}"),
    "X-Forwarded-For": ("127.0.0.1", "1.2.3.4", "::1", "a, " * 500, "1.2.3.4:99999"),
    "X-Forwarded-Proto": ("https", "wss", "file"),
    "X-Forwarded-Host": ("evil.example",),
    "Forwarded": ("for=127.0.0.1;host=evil.example",),
    "X-Request-Timeout-Seconds": ("0", "-1", "nan", "inf", "1e999", "0.0001", "a"),
    "X-Request-Disconnect-Disabled": ("?1", "?0"),
    "Serve-Multiplexed-Model-Id": ("a",),
    "serve_multiplexed_model_id": ("a",),
    "X-Session-Id": ("a",),
    "x_session_id": ("a",),
    "traceparent": ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a"),
    "Connection": ("close", "keep-alive", "Upgrade", "Upgrade, close", "Content-Length"),
    "Upgrade": ("websocket", "h2c"),
    "Sec-WebSocket-Key": ("dGhlIHNhbXBsZSBub25jZQ==",),
    "Sec-WebSocket-Version": ("13", "99"),
    "Expect": ("100-continue", "200-ok"),
    "TE": ("trailers",),
    "Trailer": ("Content-Length",),
    "Access-Control-Request-Method": ("DELETE", "POST"),
    "X-HTTP-Method-Override": ("DELETE",),
}
METHODS = (
    *(
        "HEAD",
        "OPTIONS",
        "PUT",
        "PATCH",
        "TRACE",
        "CONNECT",
        "DELETE",
        "POST",
        "GET",
        "get",
        "QUERY",
    ),
    *("PROPFIND", "PRI", "M-SEARCH", "SOURCE", "X", "", "GET GET", "GE\0T"),
)
PATHS = (
    *("/page/../../serve_config.yaml", "/page/%2e%2e%2fapp.py", "/page/..%5capp.py", "//images"),
    *(
        "/images/",
        "/index/",
        "/images/..%2f..%2fetc%2fpasswd",
        "/images/%00",
        "/page/%00",
        "/page/",
    ),
    *("/images/a%0d%0aX-Evil:1", "/%2e%2e/images", "/images;x=1", "/IMAGES", "/./images", "*", ""),
    *(
        "/images/%ff",
        "/images/%F0%9F%90%88",
        "/images/%ED%A0%80",
        "/-/routes",
        "/-/healthz",
        "/-/x",
    ),
    *(
        "http://evil.example/images",
        "http://localhost",
        "images",
        "/images#a",
        "/%",
        "/%zz",
        "/\xff",
    ),
    *(f"/images/{LONG}", f"/page/{LONG}", "/page/.", "/page/%2e%2e", "/page/%ff", "/images/a/b/c"),
    *(f"/images/{'a' * 200}", f"/images/{'a' * 201}/record", "/images/.", "/images/%2e/record"),
    *(
        "/" + "a/" * 3000,
        "/" + "%2f" * 3000,
        "/search",
        "/index",
        "/images",
        "\\images",
        "/images/?",
    ),
)
PARAMETERS = (
    *("id", "filename", "confidence_threshold", "metadata", "text", "box", "limit", "max_distance"),
    *("max_chunks", "min_sequence", "filter", "verify", "verified", "group", "after", "unknown"),
)
VALUES = (
    *("", "%00", "%ff", "%ED%A0%80", "%F0%9F%90%88", "%", "%zz", "-1", "0", "1", "1.5", "1e309"),
    *(
        "nan",
        "-inf",
        "true",
        "TRUE",
        "null",
        "[]",
        "{}",
        "9223372036854775807",
        "-0",
        "1_0",
        "%2B1",
    ),
    *("9223372036854775808", DIGITS, LONG, "0,0,1,1", "0,0,0,0", "5,5,1,1", "nan,0,0,0", "1,1,,"),
    *("%0d%0aX-Evil:1", "../..", "a=b", ";", "+", "%D9%A1", "a" * 200, "a" * 64, "auto", "all"),
    *(
        "copies",
        "fuzz-shelf-png",
        "a=1",
        "place%3Dhere",
        "date_taken%3E2020",
        "a%3D" * 9,
        "%5B" * 999,
    ),
    *("%7B%22a%22%3A1%7D", "%7B%22a%22%3A%22%5Cud800%22%7D", "%7B%22a%22%3ANaN%7D", "%7B" * 999),
    *("%7B%22a%22%3A1e999%7D", "%7B%22%22%3A1%7D", f"%7B%22a%22%3A{DIGITS}%7D", "\xff", "\xe9"),
)
PARTS = (
    *("Content-Disposition: form-data", 'Content-Disposition: form-data; name="file"', "a", ": a"),
    *(
        'Content-Disposition: attachment; name="file"',
        'Content-Disposition: form-data; name="other"',
    ),
    *('Content-Disposition: form-data; name="metadata"', "Content-Disposition:", "", "\0: \0"),
    *(DISPOSITION.decode() + "\r\nContent-Transfer-Encoding: base64", f"X-Long: {LONG}"),
    *(DISPOSITION.decode() + "\r\n" + f"{DISPOSITION.decode()}\r\n" * 20, "X: y\r\n" * 2000),
    *(
        f'Content-Disposition: form-data; name="file"; {name}'
        for name in (
            *(
                "filename*=utf-8''%ff",
                "filename*=punycode''a",
                "filename*=utf-16''%ff%fe",
                "filename*=",
            ),
            *(
                "filename*0=a; filename*1=b",
                "filename*0*=utf-8''a; filename*99999=b",
                "filename*x=a",
            ),
            *(
                'filename="',
                'filename="\\"',
                'filename="a\0b"',
                "filename=\xff",
                f"filename={LONG}",
            ),
            *(
                'filename="../../a"',
                "filename=a; filename=b",
                "name=file",
                "filename*=''",
                "=",
                ";;",
            ),
            *("filename*=undefined''%41", "filename*=idna''a..b", f"filename*={DIGITS}''a"),
            *('filename="=?utf-8?q?=ff?="', 'filename="=?punycode?b?/w==?="', "filename*1000000=a"),
        )
    ),
)
