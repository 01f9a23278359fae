"""Measure how well Inset finds photos by parts of them, on photos of your own.

    scripts/evaluate.py --images PHOTOS --labels LABELS --distractors OTHERS
    scripts/evaluate.py --images PHOTOS --labels LABELS --distractors OTHERS --distractors MORE \
        --absent FOREIGN --service

**The queries** are cut from the photos, from a fixed seed: *objects*, the labelled boxes (YOLO's
text format) of at least 48 x 48 pixels and at most half of the photo, each corner moved by up to
10 % of the box's sides; and *patches*, three of each photo, of 15 to 50 % of its width and of its
height, anywhere. All are scaled by 0.5 to 1.3, made darker or lighter (0.75 to 1.3) and more or
less colourful (0.6 to 1.4), and saved as JPEG with quality 40 to 80. A third of the patches is also
turned by 15 degrees and mirrored. The other kinds begin with such an object or patch, not turned:

- *turned-90*, *turned-180*, *turned-270* (clockwise) and *mirrored*;
- *bars*: on the screen of a phone, black or white above and below, at times with a status bar;
- *caption*: with words above it, below it, or both;
- *32-pixels*: scaled to a width of 32 pixels;
- *half-covered*: a part of another photo lies over its left, right, upper or lower half;
- *perspective*: photographed from a display that is turned by 5 to 20 degrees about any axis, with
  moiré or out of focus, half of them with the dark around it;
- *collage*: parts of four photos, two by two. Each of the four is a right answer;
- *absent*: parts of photos that are not indexed (--absent), distorted as objects and patches are.

**The photos and the distractors** are searched through the service's own segmenter, encoder, index
(exact) and ranker in this process, without verification; by default with objects and patches. With
--service, through services of its own, configured by default but for --segmenter, and with --url
through a running one; by default with all kinds.

**The report** has the share of queries whose photo came first, and among the first 5 and 10; *of
its photos*, the share of a collage's photos that are among the first 10; *box IoU*, the mean IoU of
the answered box with the true one, over the queries whose photo came first; *covered*, the share of
queries whose photo has a chunk with an IoU of at least 0.3 with the query's box: the segmenter lost
the others, whatever the encoder does; and the recall@1 of the covered. With verification also:

- *verified*: the share of the queries whose photo came first in which it was verified;
- *wrongly verified*: the number of queries for which a photo was verified that is not in them;
- the shares of the queries whose photo came first with a *box IoU* over 0.5, 0.75 and 0.9;
- *corner error*: the mean distance of the corners of the answered quad from the true ones of the
  same part of the query, in pixels of the photo and as a share of its diagonal there;
- *turned and mirrored as it is*: the share of the verified whose `mirrored` is right, and whose
  `rotation` is right within 10 degrees;
- *p50*, *p95*: milliseconds of a search, with a single client.

What frames or covers a query is not of the photo: its true box is that of what is of the photo.
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
from evaluation.figures import Row, describe, is_missed, judge_all, row_figures
from evaluation.kinds import ALL_KINDS, PARTS
from evaluation.over_http import VERIFY, SearchOptions
from evaluation.queries import (
    ABSENT_QUERIES,
    PER_KIND,
    EvaluationFailed,
    Photo,
    Query,
    find_photos,
    make_queries,
)
from evaluation.report import LASTING_COSTS, draw_misses, list_answers, table

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
    return ", ".join([display_name(options[ENCODER_NAME]), *([describe(others)] if others else [])])


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; print, draw and save the results.

    Returns:
        Exit status: 1 if an encoder had to be left out.

    Raises:
        EvaluationFailed, OSError
        ModelUnavailable: the detector is not available.
    """
    photos = find_photos(arguments.images, arguments.limit)
    distractors = [find_photos(folder, arguments.limit) for folder in arguments.distractors]
    known = {photo.id: photo for photo in itertools.chain(photos, *distractors)}
    distinct = list(known.values())
    foreign = find_photos(arguments.absent, arguments.limit) if arguments.absent else []
    queries = make_queries(
        photos,
        arguments.labels,
        arguments.seed,
        kinds=arguments.kinds,
        per_kind=arguments.queries_per_kind,
        absent=[photo for photo in foreign if photo.id not in known],
        absent_queries=arguments.absent_queries,
    )
    rows = evaluate_where(arguments, distinct, queries)
    if not rows:
        return 1
    judged = [judge_all(row, queries) for row in rows]
    results = [row_figures(row, some) for row, some in zip(rows, judged, strict=True)]
    print(f"\n{len(distinct)} photos, {len(queries)} queries, seed {arguments.seed}\n")
    print(table(results))
    if arguments.write:
        write_table(arguments.write, table(results, LASTING_COSTS))
    if arguments.json:
        own = len({photo.id for photo in photos})
        counts = {"photos": own, "distractors": len(distinct) - own}
        answers = [{"answers": list_answers(some)} for some in judged]
        content = {
            "seed": arguments.seed,
            **counts,
            "rows": [result | some for result, some in zip(results, answers, strict=True)],
        }
        arguments.json.write_text(json.dumps(content) + "\n")
    if arguments.failures:
        wanted = arguments.failures_of or arguments.kinds
        missed = [
            one
            for one in judged[0]
            if one.query.kind in wanted and is_missed(one.query, one.outcome)
        ]
        draw_misses(missed, known).save(arguments.failures)
        print(f"\nDrawn in {arguments.failures}: of {rows[0].encoder}, {len(missed)} were missed.")
    return 0 if len(rows) == expected_rows(arguments) else 1


def evaluate_where(
    arguments: argparse.Namespace, photos: Sequence[Photo], queries: Sequence[Query]
) -> list[Row]:
    """Evaluate through a service, through a running one, or in this process."""
    options = SearchOptions(arguments.verify, arguments.clients)
    if arguments.service:
        return [
            over_http.evaluate_own(segmenter, photos, queries, options)
            for segmenter in arguments.segmenter
        ]
    if arguments.url:
        return [over_http.evaluate(arguments.url, photos, queries, options)]
    return evaluate_all(arguments.encoder, arguments.segmenter, photos, queries)


def expected_rows(arguments: argparse.Namespace) -> int:
    """Return how many rows there are if nothing had to be left out."""
    return 1 if arguments.url else len(arguments.encoder) * len(arguments.segmenter)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of photos to cut from")
    parser.add_argument("--labels", type=Path, help="folder of their boxes, in YOLO's text format")
    parser.add_argument(
        "--distractors",
        action="append",
        type=Path,
        default=[],
        help="folder of other photos, indexed too; may be repeated",
    )
    parser.add_argument("--absent", type=Path, help="folder of photos that are not indexed")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=ALL_KINDS,
        metavar="KIND",
        help=f"of queries: {', '.join(ALL_KINDS)} (through a service all, otherwise "
        f"{' and '.join(PARTS)})",
    )
    parser.add_argument(
        "--queries-per-kind",
        type=positive,
        default=PER_KIND,
        metavar="N",
        help="of all but objects, patches and absent ones (%(default)s)",
    )
    parser.add_argument(
        "--absent-queries", type=positive, default=ABSENT_QUERIES, metavar="N", help="(%(default)s)"
    )
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
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="evaluate the service there, as it is configured")
    where.add_argument(
        "--service", action="store_true", help="evaluate a service that runs only for this"
    )
    parser.add_argument(
        "--verify",
        choices=VERIFY,
        default="auto",
        help="what the service looks at; `none` measures the index alone (%(default)s)",
    )
    parser.add_argument(
        "--clients",
        type=positive,
        default=1,
        metavar="N",
        help="that search at the same time: quicker, but with several no times are reported "
        "(%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the queries (%(default)s)")
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="only N photos of each folder, for a quick look",
    )
    parser.add_argument(
        "--write",
        type=table_place,
        metavar="FILE#NAME",
        help="write the tables into a document, e.g. docs/models.md#recall",
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT.json", help="write all figures and answers there"
    )
    parser.add_argument(
        "--failures",
        type=Path,
        metavar="OUT.png",
        help="draw what the first row missed there: not found first, not verified, or verified at "
        "a wrong place",
    )
    parser.add_argument(
        "--failures-of",
        nargs="+",
        choices=ALL_KINDS,
        metavar="KIND",
        help="draw only the misses of these kinds",
    )
    return parser


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    of_service = arguments.service or arguments.url
    if of_service and arguments.encoder:
        parser.error("a service's own encoder is evaluated with --url and --service")
    if arguments.url and arguments.segmenter:
        parser.error("a service's own segmenter is evaluated with --url")
    arguments.kinds = arguments.kinds or (ALL_KINDS if of_service else PARTS)
    for folder in (arguments.images, arguments.labels, *arguments.distractors, arguments.absent):
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
