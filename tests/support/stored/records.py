"""Records of photos that were never stored."""

from deployments.records import Chunk, Record


def record(id, sequence=1, chunks=1):
    box = (0, 0, 10, 10)
    return Record(
        id=id,
        filename=None,
        media_type="image/png",
        bytes=1,
        sha256="0" * 64,
        width=10,
        height=10,
        animated=False,
        indexed_at="2026-01-01T00:00:00.000+00:00",
        sequence=sequence,
        chunks=[Chunk(box=box, source="whole")] * chunks,
    )
