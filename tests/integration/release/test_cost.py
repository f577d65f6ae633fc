"""`enginefarm cost` on measurements in a real store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_rows import make_row

from enginefarm import cli
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import StoreMissing, UsageError
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables.tables import BenchmarkTables

Out = pytest.CaptureFixture[str]
Publish = Callable[..., Manifest]


@pytest.fixture
def engine(store_environment: EngineStore, publish: Publish) -> Callable[..., Manifest]:
    """Publishes an engine of a GPU; with samples/s, measured at each (batch, p99, samples/s)."""

    def made(gpu: str, *measured: tuple[int, float, float], **more: Any) -> Manifest:
        manifest = publish(gpu.encode(), label=gpu, **more)
        rows = [
            make_row(
                recipe="model",
                gpu=gpu,
                precision=manifest.precision,
                spec_digest=manifest.spec_digest,
                engine_digest=manifest.engine.digest,
                batch=batch,
                latency_ms_median=p99 / 2,
                latency_ms_p99=p99,
                throughput_samples_per_s=rate,
            )
            for batch, p99, rate in measured
        ]
        BenchmarkTables(store_environment.objects).append(rows)
        return manifest

    return made


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(
        'currency = "USD"\n[per_hour]\nt4 = 0.36\nl4 = 0.72\na100 = 4\n[fleet]\nt4 = 9\n'
    )
    return path


def found(out: Out, prices: Path, *options: str) -> dict[str, Any]:
    assert cli.run(["cost", "model", "--prices", str(prices), "--json", *options]) == 0
    return json.loads(out.readouterr().out)


def test_the_cheapest_gpu_comes_first_and_unmeasured_ones_are_named(
    engine: Any, prices: Path, capsys: Out
) -> None:
    engine("t4", (1, 2.0, 100.0), (8, 20.0, 1000.0))
    engine("l4", (1, 1.0, 1000.0), (8, 9.0, 4000.0))
    engine("a100")
    engine("a10g", (1, 1.0, 9e9))
    costs = found(capsys, prices)["costs"]
    assert [(one["gpu"], one["per_million"]) for one in costs["found"]] == [
        ("l4", pytest.approx(0.05)),
        ("t4", pytest.approx(0.1)),
    ]
    refused = costs["refused"]
    assert [*refused] == ["a100", "a10g"]
    assert "its engines were not measured at profile default" in refused["a100"]
    assert "the file has no price for it" in refused["a10g"]
    assert cli.run(["cost", "model", "--prices", str(prices)]) == 0
    said = capsys.readouterr().out
    assert "no figure for a100: its engines were not measured" in said
    assert "cheapest: l4" in said


def test_at_a_p99_the_batch_that_keeps_it_counts(engine: Any, prices: Path, capsys: Out) -> None:
    engine("t4", (1, 2.0, 500.0), (8, 20.0, 9000.0))
    engine("l4", (8, 9.0, 4000.0))
    costs = found(capsys, prices, "--p99-ms", "5")["costs"]
    assert [(one["gpu"], one["speed"]["batch"]) for one in costs["found"]] == [("t4", 1)]
    assert costs["refused"]["l4"] == "no p99 within 5 ms: the lowest is 9 ms"


def test_accuracy_that_was_not_measured_is_not_enough(
    engine: Any, prices: Path, capsys: Out
) -> None:
    engine("t4", (1, 2.0, 500.0))
    refused = found(capsys, prices, "--min-top1", "0.5")["costs"]["refused"]
    assert refused["t4"] == "no top-1 accuracy of 0.5 or more: none was measured"


def test_a_profile_of_short_texts_is_not_compared_with_one_of_long_texts(
    engine: Any, prices: Path, capsys: Out, store: EngineStore
) -> None:
    t4, l4 = (engine(gpu, profiles=("long", "short")) for gpu in ("t4", "l4"))
    for one, profile, rate in ((t4, "long", 100.0), (l4, "long", 100.0), (l4, "short", 900.0)):
        row = make_row(
            recipe="model",
            gpu=one.gpu,
            spec_digest=one.spec_digest,
            profile=profile,
            throughput_samples_per_s=rate,
        )
        BenchmarkTables(store.objects).append([row])
    costs = found(capsys, prices)["costs"]
    assert [one["speed"]["profile"] for one in costs["found"]] == ["long", "long"]
    assert "profile long" in costs["measured_with"]
    costs = found(capsys, prices, "--profile", "short")["costs"]
    assert [one["gpu"] for one in costs["found"]] == ["l4"]
    assert "not measured at profile short" in costs["refused"]["t4"]
    asked = ["cost", "model", "--prices", str(prices), "--profile", "longer"]
    assert cli.run(asked) == UsageError.exit_code
    assert "their profiles are: long, short" in capsys.readouterr().err


def test_a_fleet_that_moves_needs_as_many_as_carry_the_load(
    engine: Any, prices: Path, capsys: Out
) -> None:
    engine("t4", (8, 20.0, 1000.0))
    engine("l4", (8, 9.0, 4000.0))
    move = found(capsys, prices, "--move", "t4=l4")["move"]
    assert (move["gpus_before"], move["gpus_after"]) == (9, 3), "9000 samples/s over 4000"
    assert (move["before"], move["after"]) == (pytest.approx(3.24), pytest.approx(2.16))
    assert cli.run(["cost", "model", "--prices", str(prices), "--move", "t4=l4"]) == 0
    assert "needs 3 l4 (2.16 USD/h): -33%" in capsys.readouterr().out


def test_a_move_to_what_was_not_measured_is_refused(engine: Any, prices: Path, capsys: Out) -> None:
    engine("t4", (8, 20.0, 1000.0))
    engine("a100")
    asked = ["cost", "model", "--prices", str(prices), "--move"]
    assert cli.run([*asked, "t4=a100"]) == StoreMissing.exit_code
    assert "no figure for a100" in capsys.readouterr().err
    assert cli.run([*asked, "l4=t4"]) == UsageError.exit_code
    assert "does not say how many l4" in capsys.readouterr().err
    assert cli.run([*asked, "t4=h1000"]) == UsageError.exit_code
    assert "'h1000' is not the label of a GPU" in capsys.readouterr().err


def test_gpus_of_two_harnesses_are_not_compared(
    engine: Any, prices: Path, capsys: Out, store: EngineStore
) -> None:
    engine("t4", (8, 20.0, 1000.0))
    engine("l4", (8, 20.0, 1000.0))
    other = engine("a100")
    row = make_row(
        recipe="model",
        gpu="a100",
        spec_digest=other.spec_digest,
        harness="enginefarm/0",
        throughput_samples_per_s=1e6,
    )
    BenchmarkTables(store.objects).append([row])
    assert "measured with enginefarm/0" in found(capsys, prices)["costs"]["refused"]["a100"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "per_hour: it is missing"),
        ("[per_hour]\nt4 = -1\n", "per_hour.t4"),
        ('[per_hour]\nt4 = "0.36"\n', "per_hour.t4"),
        ("[per_hour]\nt4 = nan\n", "per_hour.t4"),
        ("[per_hour]\nt4 = true\n", "per_hour.t4"),
        ("[per_hour]\nt4 = 0\n", "per_hour.t4: it should be greater than 0"),
        ("[per_hour]\n", "per_hour: it is empty"),
        ("per_hour = 3\n", "per_hour: it is not a table"),
        ("[per_hour]\nT4 = 1\n", "did you mean t4?"),
        ("[per_hour]\ntesla = 1\n", "'tesla' is not the label of a GPU"),
        ("[per_hour]\nt4 = 1\n[fleet]\nt4 = 1.5\n", "fleet.t4"),
        ("[per_hour\n", "the prices cannot be read"),
        ("[per_hour]\nt4 = 1\nt4 = 2\n", "the prices cannot be read"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(
    tmp_path: Path, capsys: Out, text: str, said: str
) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    assert cli.run(["cost", "model", "--prices", str(path)]) == UsageError.exit_code
    error = capsys.readouterr().err
    assert "p.toml" in error
    assert said in error
