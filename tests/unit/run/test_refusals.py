"""What native libraries say is explained, by words that were recorded from them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginefarm import errors
from enginefarm.errors import BuildError, DriverTooOld, HostError, PluginMissing
from enginefarm.run import refusals
from enginefarm.run.trt import Messages, create, load_plugins

SAID = tomllib.loads((Path(__file__).parent / "data/native_words.toml").read_text("utf-8"))["said"]


@pytest.mark.parametrize("one", SAID, ids=lambda one: one["words"][:40])
def test_recorded_words_have_their_class_and_remedy(one: dict[str, str]) -> None:
    building = refusals.not_built("it", one["words"], refusal="fails", fix="see build.log")
    running = refusals.refused(Path("x.plan"), "cannot be loaded", "a GPU", one["words"])
    assert type(building) is getattr(errors, one["building"])
    assert type(running) is getattr(errors, one["running"])
    for error in (building, running):
        assert one["words"] in error.why
        assert error.fix
    if "names" in one:
        assert one["names"] in building.fix


def test_unknown_words_are_passed_on() -> None:
    assert type(refusals.not_built("it", "new", refusal="fails", fix="x")) is BuildError
    assert type(refusals.refused(Path("p"), "fails", "g", "new")) is errors.EngineRunError
    assert refusals.not_started("it does not start", "new").exit_code == HostError.exit_code


@pytest.mark.parametrize(
    ("words", "named", "remedy"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error "
            "(IConditionalOutputLayer /decoder/rnn/If_2_OutputLayer: Must have inputs with equal "
            "ranks when condition is not a build-time constant. Dimensions are [128] and "
            "[batch,128].)",
            "node '/decoder/rnn/If_2' (If)",
            "the recipe can fix to one size",
        ),
        (
            "[graphScope.cpp::analyze::471] Error Code 2: Internal Error (Assertion "
            "tScope.getType() != ScopeType::kUNDEFINED failed.)",
            "which branch of an If node",
            "export one model for each branch",
        ),
        (
            "Myelin ([pass.cpp:1500: run_passes] Cannot compile for target(s) sm75, because the "
            "model contains HW-specific datatypes: b16.",
            "no bfloat16",
            "leave this GPU out",
        ),
        (
            "Myelin ([pass.cpp:1500: run_passes] Cannot compile for target(s) sm75, because the "
            "model contains HW-specific datatypes: int4. In compileGraph",
            "does not compute with int4",
            "leave this GPU out",
        ),
        (
            "Error Code 4: API Usage Error (Quantized constant (k) is only allowed before DQ or "
            "PLUGIN_V2 or kPLUGIN_V3 node.",
            "the int8 constant 'k'",
            "int32",
        ),
        (
            "Myelin ([utils.cpp:1026: add_run_time_check] Expected 12  to be equal to  in reshape "
            "op 20180: reshape: __mye20177_q8-(i8[1,__mye4467_proxy.1,32][]so[], mem_prop=0, "
            "align=1) | /g/Transpose_output_0_QuantizeLinear_Output.1-(i8[12,__mye4467_proxy.1,32]",
            "tensor '/g/Transpose_output_0_QuantizeLinear'",
            "in front of LSTM and GRU",
        ),
        (
            "Myelin ([tactic.cpp:1676: enumerate_tactics] Tactic Selection: no tactics to "
            "implement the operation within workspace limit. Consider increase the allowed",
            "`builder.workspace_mib`",
            "a larger number",
        ),
        (
            "MyelinCheckException: decompose_composite_ops.cpp:59: "
            "CHECK(composite_op->is_decomposable()) failed. Attention operation was not supported "
            "by a dedicated kernel.",
            "operator Attention",
            "opset 20",
        ),
    ],
)
def test_a_refused_network_is_explained(words: str, named: str, remedy: str) -> None:
    """As TensorRT-RTX 1.7.1 refused them."""
    error = refusals.not_built("the builder", words, refusal="refused the network", fix="x")
    assert type(error) is BuildError
    assert named in error.why
    assert words in error.why
    assert remedy in error.fix


def test_a_failed_layer_with_a_plugin_in_its_name_lacks_no_plugin() -> None:
    words = "Could not find any implementation for node PluginV2_3. The tactics were not found."
    assert type(refusals.refused(Path("p"), "fails", "g", words)) is errors.EngineRunError


def nullptr(*_: Any) -> None:
    raise TypeError("pybind11::init(): factory function returned nullptr")


def nothing(*_: Any) -> None:
    return None


@pytest.mark.parametrize("factory", [nullptr, nothing])
def test_a_factory_that_makes_nothing_is_the_hosts_error(factory: Callable[..., Any]) -> None:
    messages = Messages(echo=False)
    messages.add("ERROR", SAID[0]["words"])
    with pytest.raises(DriverTooOld, match="TensorRT's builder does not start") as caught:
        create("TensorRT's builder", factory, "a logger", messages=messages)
    assert "error: 35" in caught.value.why, "the cause is told, though a cross-build drops it"


def test_a_factory_without_a_word_is_the_hosts_error_too() -> None:
    with pytest.raises(HostError, match="does not start") as caught:
        create("the runtime", nullptr, messages=Messages(echo=False))
    assert "nullptr" in caught.value.why


class Registry:
    """Loads nothing: None for whatever it is given, and not a word, as the real one."""

    def __init__(self, grows: bool = False) -> None:
        self.all_creators = ["one"]
        self._grows = grows

    def load_library(self, library: str) -> None:
        if self._grows:
            self.all_creators.append(library)


def test_a_plugin_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    messages = Messages(echo=False)
    (tmp_path / "text.so").write_text("no library")
    for name, why in (("missing.so", "No such file"), ("text.so", "text.so: ")):
        with pytest.raises(PluginMissing, match=f"{name} cannot be loaded") as caught:
            load_plugins(Registry(), [tmp_path / name], messages)
        assert why in caught.value.why


def test_a_library_without_a_plugin_is_named_and_one_that_registers_itself_is_taken() -> None:
    import _ctypes

    library = Path(_ctypes.__file__)  # a shared object that loads, and has no plugin
    with pytest.raises(PluginMissing, match="holds no TensorRT plugin"):
        load_plugins(Registry(), [library], Messages(echo=False))
    load_plugins(Registry(grows=True), [library], Messages(echo=False))
    loads = SimpleNamespace(plugin_creator_list=[], load_library=lambda _: "a handle")
    load_plugins(loads, [library], Messages(echo=False))
