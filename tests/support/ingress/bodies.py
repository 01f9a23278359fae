"""Bodies of requests in parts."""

FIELD = b'Content-Disposition: form-data; name="file"\r\n\r\nx'
FILE = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\n\r\nx'


def multipart(*parts, boundary="b"):
    """Return the arguments of a request with these parts, their headers included."""
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return {
        "content": body,
        "headers": {"content-type": f"multipart/form-data; boundary={boundary}"},
    }


def part(name, content, *headers):
    """Return a part that is a text."""
    lines = [b'Content-Disposition: form-data; name="%b"' % name, *headers, b"", content]
    return b"\r\n".join(lines)


def drip(content, size=100):
    """Yield a body in pieces, so that it doesn't say how long it is."""
    for start in range(0, len(content), size):
        yield content[start : start + size]
