"""Two engines layer by layer, aligned by the ONNX nodes behind each layer.

Layers that share a node, however indirectly, make one row: a convolution, a batch norm and a
ReLU that one engine fused into one layer and the other kept as three are compared as a whole.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from pydantic import Field

from enginefarm.documents.layers import Layer, Layers
from enginefarm.schema import Frozen

Side = int
A, B = 0, 1


class Difference(Frozen):
    """Layers of both engines that compute the same ONNX nodes; one side may have none."""

    nodes: tuple[str, ...]
    a: tuple[Layer, ...]
    b: tuple[Layer, ...]
    changed: tuple[str, ...] = Field(
        default=(), description="fused, precision, tactic, bytes, only in A, only in B."
    )

    @property
    def ms(self) -> tuple[float | None, float | None]:
        return _total(self.a, "ms"), _total(self.b, "ms")

    @property
    def output_bytes(self) -> tuple[int | None, int | None]:
        a, b = _total(self.a, "output_bytes"), _total(self.b, "output_bytes")
        return (None if a is None else int(a)), (None if b is None else int(b))

    @property
    def slower_ms(self) -> float:
        """Milliseconds that B takes more; 0 where either was not profiled."""
        a, b = self.ms
        if (a is None and self.a) or (b is None and self.b):
            return 0.0
        return (b or 0.0) - (a or 0.0)


class LayerDiff(Frozen):
    """Every row, in the order of A and then of B. notes: what cannot be told, and why."""

    rows: tuple[Difference, ...]
    notes: tuple[str, ...] = ()
    layers: tuple[int, int]
    ms: tuple[float | None, float | None] = (None, None)

    @property
    def changed(self) -> tuple[Difference, ...]:
        """Rows that differ; those that cost the most time first, where both were profiled, and
        those of one engine alone last."""
        found = [row for row in self.rows if row.changed or row.slower_ms]
        return tuple(sorted(found, key=lambda row: (-abs(row.slower_ms), not (row.a and row.b))))


def diff(a: Layers, b: Layers) -> LayerDiff:
    """What differs between two engines' layers: fusion, precision, tactic, bytes, time.

    The constants of a parsed network are weights, which an engine has inside its layers.
    """
    of_a, of_b = _computing(a), _computing(b)
    return LayerDiff(
        rows=tuple(_row(*group) for group in _aligned(of_a, of_b)),
        notes=tuple(_notes(a, b)),
        layers=(len(of_a), len(of_b)),
        ms=(_total(of_a, "ms"), _total(of_b, "ms")),
    )


def _computing(side: Layers) -> list[Layer]:
    return [one for one in side.layers if not (side.network and one.kind == "CONSTANT")]


def _aligned(
    a: Sequence[Layer], b: Sequence[Layer]
) -> list[tuple[tuple[Layer, ...], tuple[Layer, ...]]]:
    """Groups of layers that share nodes, or, having none, the name."""
    every = [(A, layer) for layer in a] + [(B, layer) for layer in b]
    parent = list(range(len(every)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[object, int] = {}
    seen: Counter[tuple[Side, str]] = Counter()
    for index, (side, layer) in enumerate(every):
        seen[side, layer.name] += 1
        without: list[object] = [("name", layer.name, seen[side, layer.name])]
        for key in layer.nodes or without:
            if key in first:
                parent[root(index)] = root(first[key])
            else:
                first[key] = index
    groups: defaultdict[int, tuple[list[Layer], list[Layer]]] = defaultdict(lambda: ([], []))
    for index, (side, layer) in enumerate(every):
        groups[root(index)][side].append(layer)
    return [(tuple(of_a), tuple(of_b)) for of_a, of_b in groups.values()]


def _row(a: tuple[Layer, ...], b: tuple[Layer, ...]) -> Difference:
    nodes = tuple(dict.fromkeys(node for layer in (*a, *b) for node in layer.nodes))
    if not a or not b:
        return Difference(nodes=nodes, a=a, b=b, changed=("only in B" if not a else "only in A",))
    changed = tuple(what for what, of in COMPARED.items() if of(a, b) != of(b, a))
    return Difference(nodes=nodes, a=a, b=b, changed=changed)


def _fused(these: Sequence[Layer], others: Sequence[Layer]) -> object:
    """Which nodes share a layer, of the nodes that both engines have."""
    common = {node for layer in others for node in layer.nodes}
    return Counter(found for layer in these if (found := frozenset(layer.nodes) & common))


def _named(field: str) -> Callable[[Sequence[Layer], Sequence[Layer]], object]:
    def values(these: Sequence[Layer], _: Sequence[Layer]) -> object:
        return Counter(found for layer in these if (found := getattr(layer, field)))

    return values


def _bytes(these: Sequence[Layer], others: Sequence[Layer]) -> object:
    """Bytes written and of weights; only where both sides know them."""
    return tuple(
        None if _total(others, field) is None else _total(these, field)
        for field in ("output_bytes", "weight_bytes")
    )


COMPARED: dict[str, Callable[[Sequence[Layer], Sequence[Layer]], object]] = {
    "fused": _fused,
    "precision": _named("precision"),
    "tactic": _named("tactic"),
    "bytes": _bytes,
}
"""What is compared -> its value of one side, given the other. A new one: a line here."""


def _total(layers: Iterable[Layer], field: str) -> float | None:
    """The sum; None when a layer that has outputs does not know its own."""
    values = [getattr(layer, field) for layer in layers]
    known = [value for value in values if value is not None]
    return sum(known) if known and (field != "ms" or len(known) == len(values)) else None


def _notes(a: Layers, b: Layers) -> Iterable[str]:
    of_a, of_b = ([*_notes_of(side)] for side in (a, b))
    for note in dict.fromkeys((*of_a, *of_b)):
        sides = [name for name, of in (("A", of_a), ("B", of_b)) if note in of]
        yield f"{' and '.join(sides)}: {note}"


def _notes_of(side: Layers) -> Iterable[str]:
    if side.network:
        yield (
            "these are the layers of the network before the build. TensorRT-RTX chooses fusions "
            "and kernels on the GPU, so they are not known here"
        )
        return
    if not side.detailed:
        yield "only the names of the layers were kept (profiling verbosity)"
    if any("ForeignNode[" in one.name and len(one.nodes) < 3 for one in side.layers):
        yield (
            "a fused region (ForeignNode) names its first and its last node alone; nodes between "
            "them may be listed as the other engine's own"
        )
    if all(layer.ms is None for layer in side.layers):
        yield "no profile is stored: run `enginefarm bench run RECIPE --layers` on its GPU"


# --- for people ---------------------------------------------------------------------------

HEADER = ("ONNX nodes", "layers", "precision", "tactic", "bytes written", "ms", "differs in")
NAMES_SHOWN = 3


def cells(row: Difference) -> tuple[str, ...]:
    """A row as texts, under HEADER; `–` is what is not known."""
    names = row.nodes or tuple(layer.name for layer in (row.a or row.b))
    return (
        short(names),
        f"{len(row.a)} → {len(row.b)}",
        _sides(row, "precision"),
        _sides(row, "tactic"),
        pair(*row.output_bytes, "{:,}"),
        pair(*row.ms, "{:.4f}"),
        ", ".join(row.changed),
    )


def _sides(row: Difference, field: str) -> str:
    a, b = (
        " + ".join(dict.fromkeys(value for layer in side if (value := str(getattr(layer, field)))))
        for side in (row.a, row.b)
    )
    return a if a == b else f"{a or '–'} ⇒ {b or '–'}"


def short(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def one(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def pair(a: float | None, b: float | None, form: str) -> str:
    return one(a, form) if a == b else f"{one(a, form)} → {one(b, form)}"
