"""Pull: downloads the engine that fits this host from the store into the local cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from enginefarm.documents.host import Host
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import (
    CorruptBlob,
    EnginefarmError,
    NewerVersion,
    NoEngineFits,
    SignatureRejected,
    StoreDenied,
    UsageError,
    command,
)
from enginefarm.host.detect import detect
from enginefarm.names import PrecisionName
from enginefarm.pulling.catalog import CachedCatalog, Catalog, StoreCatalog, require_trusted
from enginefarm.pulling.place import place
from enginefarm.pulling.select import Candidate, Selection, Wish, select
from enginefarm.store import open_store
from enginefarm.store.cache import BlobCache
from enginefarm.store.channels import split
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.seen_revisions import SeenRevisions
from enginefarm.store.signing import trust
from enginefarm.store.statements import trusted_on_device
from enginefarm.tables.speeds import PREFIX as SPEEDS
from enginefarm.tables.speeds import Speed

REJECTIONS_SHOWN = 20

OnSelection = Callable[[Selection, Host], None]


@dataclass(frozen=True)
class PulledEngine:
    """An engine on the local disk whose digest was checked.

    path: the plan, in the cache or at `dest`. Do not write to it. delivery: for an engine that
    may be refitted, what that saved, or why it was downloaded; else empty.
    """

    path: Path
    manifest: Manifest
    candidate: Candidate
    cached: bool
    delivery: str = ""


def pull(
    name: str,
    *,
    gpu: str = "auto",
    precision: PrecisionName | None = None,
    dest: Path | str | None = None,
    offline: bool = False,
    store: EngineStore | None = None,
    cache: BlobCache | None = None,
    on_selection: OnSelection | None = None,
    wish: Wish | None = None,
) -> PulledEngine:
    """Downloads the engine of a recipe that fits this host best.

    name: a recipe, or `recipe@channel` for the engines that the channel names. gpu: a label, or
    `auto`. precision: None takes the best that fits. dest: a file, or a folder that exists;
    None leaves the engine in the cache. offline: considers only earlier pulls of this host, and
    makes no request to the store. on_selection: receives every candidate and rejection before the
    download. wish: ranks the engines by measurements on this GPU.
    With a trust key (ENGINEFARM_TRUST) the signature is checked before a byte of the engine
    is read. Progress goes to enginefarm.progress as "download".

        engine = enginefarm.pull("minilm@production", gpu="t4", dest="model.plan")
        print(engine.path, engine.manifest.precision, engine.candidate.caveats)

    Raises: NoEngineFits with the reason of each rejection, SignatureRejected, StoreMissing for
    an unknown name, HostError, CorruptBlob, DiskFull, StoreUnavailable, StoreDenied.
    """
    cache = cache or BlobCache()
    records = CachedCatalog(cache)
    opened = None if offline else store or open_store(to_pull=True)
    seen = SeenRevisions(cache.root)
    catalog: Catalog = records if opened is None else StoreCatalog(opened, seen)
    best = choose(name, catalog, gpu=gpu, precision=precision, on_selection=on_selection, wish=wish)
    pulled = fetch(best, store=opened, cache=cache, dest=dest)
    if opened is not None:
        recipe, channel = split(name)
        records.remember(recipe, best.manifest, channel, catalog if trust() else None)
    return pulled


def choose(
    name: str,
    catalog: Catalog,
    *,
    gpu: str,
    precision: PrecisionName | None,
    on_selection: OnSelection | None = None,
    wish: Wish | None = None,
) -> Candidate:
    """The best engine that fits. A host with trust keys also checks its signature.

    On such a host an engine is skipped if no trusted key signed it, or if no signed statement says
    that the name stands for it. The chosen engine's caveats list the skipped ones. That an engine
    passed on its GPU counts only if a trusted key signed that.
    Raises: as pull().
    """
    trusted = trust()
    host = detect(gpu)
    recipe, channel = split(name)
    found = catalog.manifests(recipe, channel, trusted)
    manifests = tuple(trusted_on_device(manifest, trusted) for manifest in found)
    speeds: Mapping[str, tuple[Speed, ...]] = {}
    if wish:
        speeds = _speeds(catalog, manifests, host)
    selection = select(manifests, host, precision, catalog.budgets(recipe), wish, speeds)
    if on_selection is not None:
        on_selection(selection, host)
    best = require_fit(selection, name, host)
    if trusted is None:
        return best
    refused: list[EnginefarmError] = []
    for candidate in selection.candidates:
        manifest = candidate.manifest
        try:
            require_trusted(catalog, recipe, manifest, trusted)
        except (SignatureRejected, CorruptBlob, NewerVersion) as error:
            refused.append(error)
            continue
        skipped = tuple(f"{error.what}: {error.why}" for error in refused)
        return candidate._replace(caveats=candidate.caveats + skipped)
    raise refused[0]


def _speeds(
    catalog: Catalog, manifests: tuple[Manifest, ...], host: Host
) -> Mapping[str, tuple[Speed, ...]]:
    """Raises: UsageError if the GPU is unknown, because figures of other GPUs do not apply."""
    if host.gpu is None:
        raise UsageError(
            "pull --for: this host's GPU is not one of `enginefarm gpus`",
            why="engines are ranked by what was measured on the same GPU",
            fix="name it with --gpu LABEL, or leave out --for",
        )
    try:
        return catalog.speeds(manifests, host.gpu)
    except StoreDenied as error:
        raise StoreDenied(
            "pull --for: this key is not allowed to read the benchmark figures",
            why=error.why or error.what,
            fix=f"let it read {SPEEDS}* (infra/s3-policies/pull.json), or leave out --for",
        ) from None


def require_fit(selection: Selection, name: str, host: Host) -> Candidate:
    """The best candidate. Raises: NoEngineFits."""
    if selection.candidates:
        return selection.candidates[0]
    raise NoEngineFits(
        f"{command('pull')}: none of the {len(selection.rejections)} engines of {name!r} fits "
        f"({host})",
        why="\n       ".join(_lines(selection)),
        fix="build one for this host: add its GPU to the recipe, or match the runtime's build",
    )


def _lines(selection: Selection) -> Iterable[str]:
    for rejection in selection.rejections[:REJECTIONS_SHOWN]:
        manifest = rejection.manifest
        reasons = "; ".join(rejection.reasons)
        yield f"{manifest.spec.label} {manifest.spec_digest[:12]}: {reasons}"
    more = len(selection.rejections) - REJECTIONS_SHOWN
    if more > 0:
        yield f"and {more} more"


def fetch(
    candidate: Candidate, *, store: EngineStore | None, cache: BlobCache, dest: Path | str | None
) -> PulledEngine:
    """Downloads the candidate into the cache, or refits it there, and checks its digest. With
    `dest`, copies it there, with the manifest next to it as `<dest>.json`.

    store: None if the engine is already in the cache.
    """
    manifest = candidate.manifest
    cached = store is None or cache.has(manifest.engine)
    delivery = ""
    if store is not None and manifest.refit is not None and not cached:
        from enginefarm.pulling.refit import deliver  # few engines are refitted

        delivery = deliver(store, cache, manifest, manifest.refit)
    if store is not None:
        cache.ensure(store, manifest.engine)
    to = None if dest is None else Path(dest)
    path = place(cache, manifest.engine, file_name(manifest), manifest.canonical_json(), to)
    return PulledEngine(path, manifest, candidate, cached, delivery)


def file_name(manifest: Manifest) -> str:
    """`model-t4-fp16-0123456789ab.plan`"""
    return f"{manifest.recipe}-{manifest.gpu}-{manifest.precision}-{manifest.spec_digest[:12]}.plan"
