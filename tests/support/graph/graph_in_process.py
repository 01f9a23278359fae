"""The graph in this process, as it is bound: all of its deployments, one, or some.

`serve.run(..., _local_testing_mode=True)` runs the real deployments with the real models, without a
cluster. Where a deployment has to be looked into, it is built as the graph binds it: `make` below.
"""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import yaml
from ray import serve

import graph
from deployments.flows import IndexFlow, SearchFlow
from deployments.ingress.service import Inset

WAIT_S = 60
FLOWS = (IndexFlow, SearchFlow)
# The deployments that the ingress asks, and what it is asked itself.
HANDLES = ["photo_encoder", "query_encoder", "chunk_index", "store", "verifier"]
OPERATIONS = [
    ("index", [b"x"]),
    ("search", [b"x"]),
    ("get", ["a"]),
    ("part", ["a", "0" * 64, 0, 1]),
    ("thumbnail", ["a"]),
    ("record", ["a"]),
    ("list", []),
    ("delete", ["a"]),
    ("ready", []),
    ("stats", []),
    ("check", []),
]


def arguments(folder, changes=None):
    """The `args` of serve_config.yaml with a store of its own, and with changed options."""
    config = yaml.safe_load((Path(graph.__file__).parent / "serve_config.yaml").read_text())
    args = config["applications"][0]["args"]
    args["store"]["path"] = str(folder)
    for name, changed in (changes or {}).items():
        args[name] = args[name] | changed if isinstance(changed, dict) else changed
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


def make(name, folder, changes=None):
    """Return a deployment as the graph binds it, without a replica around it."""
    deployment = bound(folder, changes)[name]
    return deployment.func_or_class(*deployment.init_args, **deployment.init_kwargs)


class Handle:
    """Stands where a `DeploymentHandle` does, and calls an object in this very event loop."""

    def __init__(self, target):
        self.target = target

    def __getattr__(self, name):
        async def call(*args):
            args = [await a if isinstance(a, asyncio.Future) else a for a in args]
            return await getattr(self.target, name)(*args)

        return SimpleNamespace(remote=lambda *args: asyncio.ensure_future(call(*args)))


def ingress(folder, changes=None, group=1, **targets):
    """Return the service as the graph binds it, on these deployments; no other must be called."""
    handles = {name: Handle(targets.get(name)) for name in HANDLES}
    flows = {
        "index_flow": IndexFlow(handles["photo_encoder"], handles["store"], group),
        "search_flow": SearchFlow(
            handles["query_encoder"],
            handles["chunk_index"],
            handles["store"],
            handles["verifier"],
            10,
        ),
    }
    options = bound(folder, changes)["Ingress"].init_kwargs | flows
    del options["http"]  # who may come in by HTTP
    return Inset(**options)


def call(method, *args, **kwargs):
    return method.remote(*args, **kwargs).result(timeout_s=WAIT_S)
