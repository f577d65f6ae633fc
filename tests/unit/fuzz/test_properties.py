"""Properties that hold for every input: keys, names, parsers, selection."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from enginefarm.documents import gpus
from enginefarm.documents.builder import BuilderOptions
from enginefarm.documents.host import Host
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import BuildSpec
from enginefarm.errors import RecipeError
from enginefarm.pulling.select import Candidate, select
from enginefarm.recipes import file as recipe_file
from enginefarm.schema import ImportPath, Name, canonical_json
from enginefarm.store import layout
from enginefarm.store.layout import IndexEntry
from tests.sample_manifest import make_manifest, make_spec
from tests.unit.fuzz.targets import TARGETS, outcome

settings.register_profile("fuzz", settings.get_profile("here"), derandomize=True, max_examples=120)
settings.load_profile("fuzz")

ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = TypeAdapter[str](Name)
IMPORT_PATHS = TypeAdapter[str](ImportPath)
NAME_LIKE = st.from_regex(r"\A[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?\Z")
DIGESTS = st.from_regex(r"\A[0-9a-f]{64}\Z")


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=400))
def test_bytes_of_any_kind_end_in_an_answer_or_one_clear_error(name: str, data: bytes) -> None:
    outcome(TARGETS[name], data)


@given(st.text(max_size=80))
def test_a_name_is_one_segment_of_a_path_and_of_a_key(text: str) -> None:
    try:
        NAMES.validate_python(text)
    except ValidationError:
        return
    assert "/" not in text
    assert "\\" not in text
    assert text not in (".", "..")
    assert text.isascii()
    assert text.strip() == text


@given(NAME_LIKE, NAME_LIKE, NAME_LIKE, DIGESTS)
def test_an_index_key_says_what_it_was_made_of(
    recipe: str, gpu: str, precision: str, digest: str
) -> None:
    entry = IndexEntry(recipe, gpu, precision, digest)
    key = layout.index(entry)
    assert layout.parse_index(key) == entry
    assert key.startswith(layout.index_prefix(recipe, gpu))


@given(st.text(max_size=60))
def test_an_import_path_is_never_absolute_nor_a_url(text: str) -> None:
    try:
        IMPORT_PATHS.validate_python(text)
    except ValidationError:
        return
    assert not text.startswith("/")
    assert text.count(":") == 1
    assert "\n" not in text


@given(st.dictionaries(st.sampled_from([*Recipe.model_fields, "nmae"]), ANY_JSON, max_size=6))
def test_no_document_breaks_the_recipe_loader(document: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_file.parse(json.dumps(document))
    assert str(caught.value)


@given(st.dictionaries(st.text(max_size=6), ANY_JSON, max_size=5), st.randoms())
def test_canonical_json_does_not_know_the_order(value: dict[str, Any], chance: Any) -> None:
    items = list(value.items())
    chance.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value


SPEC_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "optimization_level": st.integers(0, 5),
        "workspace_mib": st.none() | st.integers(1, 1 << 16),
        "version_compatible": st.booleans(),
        "sparse_weights": st.booleans(),
        "attempts": st.integers(1, 20),
    },
)


@given(SPEC_FIELDS, SPEC_FIELDS)
def test_the_key_changes_with_the_spec_and_with_nothing_else(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    def spec(options: dict[str, Any]) -> BuildSpec:
        return make_spec().model_copy(update={"builder": BuilderOptions(**options)})

    one, two = spec(first), spec(second)
    assert (one.digest == two.digest) == (one.builder == two.builder)
    again = BuildSpec.model_validate_json(one.canonical_json())
    assert again.digest == one.digest, "a key survives the way through JSON"


@given(st.sampled_from(sorted(Manifest.model_fields)), ANY_JSON)
def test_a_manifest_with_one_field_replaced_is_refused_or_keeps_its_meaning(
    field: str, value: Any
) -> None:
    document = json.loads(make_manifest().canonical_json())
    document[field] = value
    try:
        found = Manifest.model_validate_json(json.dumps(document))
    except ValidationError:
        return
    assert Manifest.model_validate_json(found.canonical_json()) == found


HOSTS = st.builds(
    Host,
    gpu=st.none() | st.sampled_from(sorted(gpus.table())),
    compute_capability=st.none() | st.sampled_from(["7.5", "8.0", "8.6", "8.9", "9.0", "12.0"]),
    driver=st.none() | st.sampled_from(["450.1", "535.104", "580.95.05", "x"]),
    os=st.none() | st.sampled_from(["linux", "windows"]),
    arch=st.none() | st.sampled_from(["x86_64", "aarch64"]),
    runtimes=st.dictionaries(
        st.sampled_from(["tensorrt", "tensorrt-rtx"]),
        st.sampled_from(["10.16.1.11", "11.4.0.106", "1.7.1.116", ""]),
    ),
)
MANIFESTS = st.lists(
    st.builds(
        make_manifest,
        engine=st.sampled_from([b"one", b"two", b"three"]),
        label=st.sampled_from(["t4", "a100", "l4", "a10g"]),
        minutes=st.integers(0, 100),
    ),
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(MANIFESTS, HOSTS, st.randoms())
def test_selection_loses_nobody_and_does_not_depend_on_the_order(
    manifests: list[Manifest], host: Host, chance: Any
) -> None:
    chosen = select(manifests, host)
    assert len(chosen.candidates) + len(chosen.rejections) == len(manifests)
    assert all(rejection.reasons for rejection in chosen.rejections), "each says why"
    shuffled = list(manifests)
    chance.shuffle(shuffled)
    again = select(shuffled, host)

    def key(one: Candidate) -> tuple[object, ...]:
        return one.manifest.spec_digest, one.manifest.created_at, one.manifest.engine.digest

    assert sorted(map(key, again.candidates)) == sorted(map(key, chosen.candidates))
    if chosen.candidates:
        assert again.candidates[0].fit == chosen.candidates[0].fit
