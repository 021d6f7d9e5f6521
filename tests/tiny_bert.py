"""The weights of a BERT of a few numbers, stacked and layer by layer."""

import numpy as np

from jaxft.nn.weights import Weight, flatten, unflatten


def weight(name: str, shape: tuple[int, ...], kind: str, depth: int, layers: int = 0) -> Weight:
    """A weight at `depth`, or a stack of `layers` from depth 1 on."""
    return Weight(
        path=tuple(name.split("/")),
        shape=(layers, *shape) if layers else shape,
        axes=(None,) * (len(shape) + bool(layers)),
        hf=name,
        kind=kind,
        transposed=False,
        layers=tuple(range(layers)),
        depth=tuple(range(1, layers + 1)) if layers else (depth,),
    )


def bert(layers: int, width: int = 4) -> dict[tuple[str, ...], Weight]:
    top = layers + 1
    declared = [
        weight("embeddings/word/embedding", (6, width), "embedding", 0),
        weight("embeddings/norm/scale", (width,), "norm", 0),
        weight("encoder/query/kernel", (width, width), "kernel", 0, layers),
        weight("encoder/query/bias", (width,), "bias", 0, layers),
        weight("encoder/norm/scale", (width,), "norm", 0, layers),
        weight("pooler/kernel", (width, width), "kernel", layers),
        weight("heads/classify/kernel", (width, 3), "kernel", top),
        weight("heads/classify/bias", (3,), "bias", top),
    ]
    return {weight.path: weight for weight in declared}


def unstack(tree: dict) -> dict:
    """`encoder/...` leaves become one leaf per layer."""
    leaves = {}
    for path, leaf in flatten(tree):
        if path[0] == "encoder":
            leaves |= {("encoder", str(i), *path[1:]): row for i, row in enumerate(leaf)}
        else:
            leaves[path] = leaf
    return unflatten(leaves)


def unstacked(weights: dict) -> dict:
    """The same weights, each layer on its own."""
    single = {}
    for path, w in weights.items():
        if not w.stacked:
            single[path] = w
        for i, depth in zip(w.layers, w.depth, strict=True) if w.stacked else ():
            name = "/".join(("encoder", str(i), *path[1:]))
            single[tuple(name.split("/"))] = weight(name, w.shape[1:], w.kind, depth)
    return single


def random_tree(weights: dict, seed: int, *lead: int) -> dict:
    rng = np.random.default_rng(seed)
    return unflatten(
        {path: rng.normal(size=(*lead, *w.shape)).astype(np.float32) for path, w in weights.items()}
    )
