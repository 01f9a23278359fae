"""The graph: which deployment is bound to which.

    index    bytes ─► PhotoEncoder ─► Store ─► (log) ─► ChunkIndex
    search   query ─► QueryEncoder ─► ChunkIndex and its Ranker ─► Store ─► Verifier ─► matches

The Ingress runs both: `IndexFlow` and `SearchFlow` in `deployments/flows.py` are these two lines as
code. The PhotoEncoder is a segmenter and an encoder in one replica, so that crops stay where they
are cut. The verifier gets the previews of photos from the store.

`serve run serve_config.yaml` calls `build` with the file's `args`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.serve import Application

from deployments.chunk_index.deployment import ChunkIndexDeployment
from deployments.encoder.deployment import QueryEncoderDeployment
from deployments.encoder.files import find_encoder
from deployments.flows import IndexFlow, SearchFlow
from deployments.ingress.deployment import IngressDeployment
from deployments.photo_encoder.deployment import PhotoEncoderDeployment
from deployments.ranker import Ranker
from deployments.segmenter.files import find_detector
from deployments.settings import Settings, display_name
from deployments.startup import check_messages, ending_serve_run
from deployments.store.deployment import StoreDeployment
from deployments.verifier.deployment import VerifierDeployment


def build(args: dict[str, Any]) -> Application:
    """Return the application: all deployments, bound to each other.

    Raises:
        StartupError: an option is unknown or wrong, or a model is not available.
    """
    with ending_serve_run():
        settings = Settings.parse(args, root=Path(__file__).parent)
        check_messages(settings.limits.max_image_bytes)
        find_detector(settings.segmenter)
        encoder = find_encoder(settings.encoder)
    images = settings.limits.image

    photo_encoder = bind(
        PhotoEncoderDeployment,
        settings.segmenter,
        settings.encoder,
        images,
        settings.facts,
        encoder,
    )
    query_encoder = bind(QueryEncoderDeployment, settings.encoder, images, encoder)
    store = bind(StoreDeployment, settings.store, encoder.identity)
    # The ranker works in the replicas of the chunk index, because another process costs a call.
    ranker = Ranker(settings.ranker)
    chunk_index = bind(
        ChunkIndexDeployment, settings.chunk_index, encoder.identity.dimension, ranker, store
    )
    verifier = bind(VerifierDeployment, images, store) if settings.verifier.enabled else None

    return bind(
        IngressDeployment,
        index_flow=IndexFlow(photo_encoder, store, settings.segmenter.batch_size),
        search_flow=SearchFlow(
            query_encoder, chunk_index, store, verifier, settings.verifier.candidates
        ),
        encoder=encoder.state,
        detector=display_name(settings.segmenter.model_name_or_path),
        limits=settings.limits,
        http=settings.http,
    )


def bind(deployment: Any, *args: Any, **kwargs: Any) -> Any:
    """Bind a deployment to the arguments of its constructor.

    If it is passed to another deployment, each replica of that one gets a handle to it.
    """
    return deployment.bind(*args, **kwargs)
