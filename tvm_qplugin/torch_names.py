"""What the tensors of a program of torch.export are called: after the modules of the model."""

from __future__ import annotations

from typing import Any

WEIGHTED = ("conv1d.default", "conv2d.default", "convolution.default", "linear.default")
NORM = "_native_batch_norm_legit_no_training.default"
CLAMPS = ("relu.default", "relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default")


def path_of(node: Any) -> tuple[str, bool]:
    """The path of the module that a node belongs to, and whether that is a layer of torch itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", False
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return str(path), kind.startswith("torch.nn.modules.")


def label(node: Any) -> str:
    """Where in the model a node stands: the path of its module, or its own name."""
    return path_of(node)[0] or str(node.name)


def names_of(program: Any) -> dict[Any, str | None]:
    """Node -> name: the path of its module in the model, where that does more with the operator behind it.

    A batch norm and a clamp that nothing but a weighted layer feeds are computed with it: what they give has
    the name of that layer, and what is between has none.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    found: dict[Any, str | None] = {}
    seen: set[str] = set()
    for node in reversed(nodes):
        path, is_layer = path_of(node)
        place = next(reversed(node.meta.get("nn_module_stack") or {}), "")
        aside = node.target.__name__ == "getitem" and node.args[1] != 0
        is_result = is_layer and place not in seen and not aside
        seen |= {place} if is_result else set()
        found[node] = path if is_result else "_".join(filter(None, (path, _operator(node))))
    for node in nodes:
        if node.target.__name__ in WEIGHTED:
            *inner, last = _computed_with(node)
            found |= {**dict.fromkeys(inner), last: found[node]}
    return {node: found[node] for node in nodes}


def _computed_with(layer: Any) -> list[Any]:
    """The layer, its batch norm and its clamp, each the only reader of the one before."""
    chain = [layer]
    while len(chain[-1].users) == 1:
        user = next(iter(chain[-1].users))
        kind = getattr(user.target, "__name__", "")
        norm = kind == "getitem" and chain[-1].target.__name__ == NORM
        if not norm and kind not in (NORM, *CLAMPS):
            break
        chain.append(user)
        if kind in CLAMPS:
            break
    return chain


def _operator(node: Any) -> str:
    if node.target.__name__ == "getitem":
        return f"{_operator(node.args[0])}_{node.args[1]}"
    return str(node.target.__name__).partition(".")[0].strip("_")
