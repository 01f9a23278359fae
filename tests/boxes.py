"""The boxes of the graph in this process, as the graph binds them: all together, one, or some.

`serve.run(..., _local_testing_mode=True)` runs the real boxes with the real models, without a
cluster. Where a box has to be looked into, it is built as the graph binds it: `box` below.
"""

import asyncio
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray import serve
from ray.serve import batching

import graph
from deployments.flows import IndexFlow, SearchFlow
from deployments.ingress.service import Inset

WAIT_S = 60
FLOWS = (IndexFlow, SearchFlow)
# The boxes that the ingress asks, and what it is asked itself.
HANDLES = ["segmenter", "index_encoder", "query_encoder", "chunk_index", "store"]
OPERATIONS = [
    ("index", [b"x"]),
    ("search", [b"x"]),
    ("get", ["a"]),
    ("thumbnail", ["a"]),
    ("record", ["a"]),
    ("list", []),
    ("delete", ["a"]),
    ("stats", []),
    ("check", []),
]


@pytest.fixture(scope="module")
def batches_without_replicas():
    """Let `serve.batch` work where no replica is around it.

    It keeps one queue for each method of a class, bound to the first event loop that calls it:
    right for replicas, which are processes. Here the replicas of a class are event loops.
    """
    queues = weakref.WeakKeyDictionary()

    def queue(self):
        here = queues.setdefault(asyncio.get_running_loop(), {})
        if self not in here:
            here[self] = batching._BatchQueue(
                self.max_batch_size,
                self.batch_wait_timeout_s,
                self.max_concurrent_batches,
                self.handle_batch_func,
                self.batch_size_fn,
            )
        return here[self]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching._LazyBatchQueueWrapper, "queue", property(queue))
        # It asks the replica around it how many requests that takes.
        name = "_warn_if_max_batch_size_exceeds_max_ongoing_requests"
        patch.setattr(batching._BatchQueue, name, lambda self: None)
        yield
    # Their batches, and the index that follows the store.
    for loop in list(queues):
        if loop.is_running():
            loop.call_soon_threadsafe(cancel_all_of, loop)


def cancel_all_of(loop):
    for task in asyncio.all_tasks(loop):
        task.cancel()


def arguments(folder, changes=None):
    """The `args` of serve_config.yaml with a store of its own, and with changed options."""
    config = yaml.safe_load((Path(graph.__file__).parent / "serve_config.yaml").read_text())
    args = config["applications"][0]["args"]
    args["store"]["path"] = str(folder)
    for section, options in (changes or {}).items():
        args[section] |= options
    return args


def run(folder, changes=None):
    """Run the whole graph in this process; return the handle a client gets."""
    return serve.run(
        graph.build(arguments(folder, changes)), _local_testing_mode=True, name=f"inset-{folder}"
    )


def bound(folder, changes=None):
    """Every deployment that `graph.build` binds, by name."""
    found = {}

    def visit(application):
        deployment = application._bound_deployment
        found[deployment.name] = deployment
        for value in (*deployment.init_args, *deployment.init_kwargs.values()):
            for part in vars(value).values() if isinstance(value, FLOWS) else [value]:
                if isinstance(part, serve.Application):
                    visit(part)

    visit(graph.build(arguments(folder, changes)))
    return found


def box(name, folder, changes=None):
    """A box as the graph binds it, without a replica around it."""
    deployment = bound(folder, changes)[name]
    return deployment.func_or_class(*deployment.init_args, **deployment.init_kwargs)


class Handle:
    """Stands where a `DeploymentHandle` does, and calls an object in this very event loop."""

    def __init__(self, target):
        self.target = target

    def options(self, **options):
        return self

    def __getattr__(self, name):
        async def call(*args):
            args = [await a if isinstance(a, asyncio.Future) else a for a in args]
            return await getattr(self.target, name)(*args)

        return SimpleNamespace(remote=lambda *args: asyncio.ensure_future(call(*args)))


def ingress(folder, changes=None, **targets):
    """The service as the graph binds it, on other boxes; one that isn't given must not be asked."""
    handles = {name: Handle(targets.get(name)) for name in HANDLES}
    flows = {
        "index_flow": IndexFlow(handles["segmenter"], handles["index_encoder"], handles["store"]),
        "search_flow": SearchFlow(
            handles["query_encoder"], handles["chunk_index"], handles["store"]
        ),
    }
    return Inset(**(bound(folder, changes)["Ingress"].init_kwargs | flows))


def call(method, *args, **kwargs):
    return method.remote(*args, **kwargs).result(timeout_s=WAIT_S)


@pytest.fixture(scope="module")
def pictures(photos):
    names = ("chelsea.png", "coffee.png", "motorcycle_left.png", "astronaut.png")
    return {name.split(".")[0].split("_")[0]: (photos / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def inset(tmp_path_factory, batches_without_replicas, pictures):
    """The graph of serve_config.yaml, with photos in it whose ids are their names."""
    handle = run(tmp_path_factory.mktemp("inset"))
    for name, data in pictures.items():
        call(handle.index, data, id=name, filename=f"{name}.png")
    return handle
