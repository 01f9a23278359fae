"""Measure how well Inset finds photos by parts of them, on photos of your own.

    scripts/evaluate.py --images PHOTOS --labels LABELS --distractors OTHERS

**The queries** are cut from the photos, from a fixed seed: *objects*, the labelled boxes (YOLO's
text format) of at least 48 x 48 pixels and at most half of the photo, each corner moved by up to
10 % of the box's sides; and *patches*, three of each photo, of 15 to 50 % of its width and of its
height, anywhere. All are scaled by 0.5 to 1.3, made darker or lighter (0.75 to 1.3) and more or
less colourful (0.6 to 1.4), and saved as JPEG with quality 40 to 80. A third of the patches is also
turned by 15 degrees and mirrored.

**The photos and the distractors** are searched through the service's own segmenter, encoder, index
(exact) and ranker in this process; with --url through a running service.

**The report** has the share of queries whose photo came first, and among the first 5 and 10; *box
IoU*, the mean IoU of the answered box with the true one, over the queries whose photo came first;
*covered*, the share of queries whose photo has a chunk with an IoU of at least 0.3 with the query's
box: the segmenter lost the others, whatever the encoder does; and the recall@1 of the covered.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.options import (
    DEFAULT_ENCODER,
    ENCODER_NAME,
    parse_encoder,
    parse_segmenter,
    positive,
)
from common.tables import table_place, write_table
from evaluation import in_process, over_http
from evaluation.encoders import BASELINES, load_encoder
from evaluation.in_process import show
from evaluation.queries import EvaluationFailed, Photo, Query, find_photos, make_queries
from evaluation.report import LASTING_COSTS, Row, draw_misses, misses, row_figures, table

from deployments.errors import ModelUnavailable
from deployments.settings import EncoderSettings, display_name


def evaluate_all(
    encoders: Sequence[dict[str, Any]],
    segmenters: Sequence[dict[str, Any]],
    photos: Sequence[Photo],
    queries: Sequence[Query],
) -> list[Row]:
    """Return a row for each encoder and segmenter; report encoders that are not available.

    Args:
        encoders, segmenters: options, as in serve_config.yaml.
    """
    loaded = {}
    for options in encoders:
        title = name_encoder(options)
        try:
            loaded[title] = load_encoder(EncoderSettings.model_validate(options))
        except ModelUnavailable as error:
            print(f"{title} is left out: {error}", file=sys.stderr)
    return [
        in_process.evaluate(title, encoder, options, photos, queries)
        for title, encoder in loaded.items()
        for options in segmenters
    ]


def name_encoder(options: dict[str, Any]) -> str:
    """Return the name of an encoder and its options, as text."""
    others = {key: value for key, value in options.items() if key != ENCODER_NAME}
    return ", ".join([display_name(options[ENCODER_NAME]), *([show(others)] if others else [])])


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; print, draw and save the results.

    Returns:
        Exit status: 1 if an encoder had to be left out.

    Raises:
        EvaluationFailed, OSError
        ModelUnavailable: the detector is not available.
    """
    folders = [folder for folder in (arguments.images, arguments.distractors) if folder]
    photos, *distractors = (find_photos(folder, arguments.limit) for folder in folders)
    queries = make_queries(photos, arguments.labels, arguments.seed)
    known = {photo.id: photo for photo in itertools.chain(photos, *distractors)}
    distinct = list(known.values())
    if arguments.url:
        expected, rows = 1, [over_http.evaluate(arguments.url, distinct, queries)]
    else:
        expected = len(arguments.encoder) * len(arguments.segmenter)
        rows = evaluate_all(arguments.encoder, arguments.segmenter, distinct, queries)
    if not rows:
        return 1
    results = [row_figures(row, queries) for row in rows]
    print(f"\n{len(distinct)} photos, {len(queries)} queries, seed {arguments.seed}\n")
    print(table(results))
    if arguments.write:
        write_table(arguments.write, table(results, LASTING_COSTS))
    if arguments.json:
        own = len({photo.id for photo in photos})
        counts = {"photos": own, "distractors": len(distinct) - own}
        content = {"seed": arguments.seed, **counts, "rows": results}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    if arguments.failures:
        missed = misses(list(zip(queries, rows[0].answers, strict=True)))
        draw_misses(missed, known).save(arguments.failures)
        print(f"\nDrawn in {arguments.failures}: of {rows[0].encoder}, {len(missed)} were missed.")
    return 0 if len(rows) == expected else 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of photos to cut from")
    parser.add_argument("--labels", type=Path, help="folder of their boxes, in YOLO's text format")
    parser.add_argument("--distractors", type=Path, help="folder of other photos, indexed too")
    parser.add_argument(
        "--encoder",
        action="append",
        type=parse_encoder,
        help=f"a CLIP, by folder or hub name, or {', '.join(BASELINES)}; or options that "
        "serve_config.yaml has under `encoder`, as an object; may be repeated (models/compact)",
    )
    parser.add_argument(
        "--segmenter",
        action="append",
        type=parse_segmenter,
        metavar="JSON",
        help="options that serve_config.yaml has under `segmenter`, as an object: "
        '\'{"tiles": [2], "confidence_threshold": 0.3}\'; may be repeated (its defaults)',
    )
    parser.add_argument("--url", help="evaluate the service there, as it is configured")
    parser.add_argument("--seed", type=int, default=0, help="of the queries (%(default)s)")
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="only N photos and N distractors, for a quick look",
    )
    parser.add_argument(
        "--write",
        type=table_place,
        metavar="FILE#NAME",
        help="write the tables into a document, e.g. docs/models.md#recall",
    )
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="write all figures there")
    parser.add_argument(
        "--failures", type=Path, metavar="OUT.png", help="draw what the first row missed there"
    )
    return parser


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.url and (arguments.encoder or arguments.segmenter):
        parser.error("with --url the service's own encoder and segmenter are evaluated")
    for folder in (arguments.images, arguments.labels, arguments.distractors):
        if folder and not folder.is_dir():
            parser.error(f"no such folder: {folder}")
    arguments.encoder = arguments.encoder or [DEFAULT_ENCODER]
    arguments.segmenter = arguments.segmenter or [{}]
    try:
        return run(arguments)
    except (EvaluationFailed, ModelUnavailable, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
