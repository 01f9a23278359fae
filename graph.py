"""The picture of the system: what is bound to what.

    index    bytes ─► Segmenter ─► IndexEncoder ─► Store ─► (log) ─► ChunkIndex
    search   bytes ─► QueryEncoder ─► ChunkIndex ─► Ranker ─► Store ─► answer

The Ingress walks both ways; crops and vectors go from box to box, not through it.

`serve run serve_config.yaml` calls `build` with the `args` of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.serve import Application

from deployments.chunk_index.index import ChunkIndexDeployment
from deployments.encoder.encoder import EncoderDeployment, find_encoder
from deployments.ingress.service import IngressDeployment
from deployments.ranker import Ranker
from deployments.segmenter.detectors import find_detector
from deployments.segmenter.segmenter import SegmenterDeployment
from deployments.settings import Settings, display_name
from deployments.startup import ending_serve_run
from deployments.store.store import StoreDeployment


def build(args: dict[str, Any]) -> Application:
    """Compose the index DAG and the search DAG.

    Raises:
        StartupError: an option is unknown or wrong, or a model can't be had.
    """
    with ending_serve_run():
        settings = Settings.parse(args, root=Path(__file__).parent)
        find_detector(
            settings.segmenter.model_name_or_path,
            backend=settings.segmenter.backend,
            dtype=settings.segmenter.dtype,
        )
        encoder = find_encoder(
            settings.encoder.pretrained_model_name_or_path,
            backend=settings.encoder.backend,
            dtype=settings.encoder.dtype,
        )
    limits, dimension = settings.limits, encoder.identity.dimension

    segmenter = SegmenterDeployment.bind(
        settings.segmenter, encoder.image_size, encoder.squash, limits.image
    )
    index_encoder = EncoderDeployment.options(name="IndexEncoder").bind(
        settings.encoder, limits.image
    )
    query_encoder = EncoderDeployment.options(name="QueryEncoder").bind(
        settings.encoder, limits.image, low_latency=True
    )
    store = StoreDeployment.bind(settings.store, encoder.identity)
    # The ranker works in the replica of the index: a process of its own would be a hop more.
    ranker = Ranker(settings.ranker.aggregation)
    chunk_index = ChunkIndexDeployment.bind(settings.chunk_index, dimension, ranker, store)

    return IngressDeployment.bind(
        segmenter=segmenter,
        index_encoder=index_encoder,
        query_encoder=query_encoder,
        chunk_index=chunk_index,
        store=store,
        encoder=encoder.state,
        detector=display_name(settings.segmenter.model_name_or_path),
        limits=limits,
    )
