"""A tiny folded decoder, simulated in native code and shared by the tests of a process.

The build takes most of the time, so there is one design for all: its residual unit damages the
beats that a memory names. The memory is empty unless a test fills it, and costs no other build.
"""

import contextlib
import fcntl
import functools
from collections.abc import Iterator

import torch
from amaranth import Module, Signal, unsigned
from amaranth.lib import memory, wiring
from torch import fx

from mxhw.compiler.binder import bind
from mxhw.compiler.binding import FoldedBinding
from mxhw.compiler.elaborate import decoder_parameters
from mxhw.compiler.lower import lower
from mxhw.compiler.passes import LoweringOptions
from mxhw.compiler.trace import stream_names
from mxhw.cosim import _build
from mxhw.cosim.engine import Engine, make_engine
from mxhw.dataflow.decoder import FoldedDecoder
from mxhw.dataflow.link import link
from mxhw.dataflow.residual import Residual
from mxhw.formats import SCALE_BITS
from mxhw.models.config import LlamaConfig
from mxhw.models.llama import Llama, LlamaDecode

CONFIG = LlamaConfig(
    vocabulary_size=64, dim=64, hidden=64, layers=2, heads=4, kv_heads=2, head_size=32, context=64
)
OPTIONS = LoweringOptions()
ENGINE_STREAMS = ["engine.i_command", "engine.i_weights"]
_FAULT_BEATS = 64


def llama(config: LlamaConfig = CONFIG, *, seed: int = 1, gain: float = 1.0) -> Llama:
    """A model of random weights; a gain makes its attention sharper."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Llama(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight *= gain
    return model


@functools.cache
def lowered() -> fx.GraphModule:
    """The decode step of the shared model."""
    return lower(LlamaDecode(llama(gain=2.0)), OPTIONS)


@functools.cache
def binding() -> FoldedBinding:
    """Its binding."""
    return bind(lowered(), OPTIONS, rows=4)


class FaultyResidual(wiring.Component):
    """A residual whose output beats are xored with a memory's words; the top bit stops it."""

    def __init__(self, inner: Residual):
        self._inner = inner
        self.latency = inner.latency
        super().__init__(inner.signature)

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.inner = inner = self._inner
        width = len(self.o.payload.as_value())
        m.submodules.faults = faults = memory.Memory(
            shape=unsigned(width + 1), depth=_FAULT_BEATS, init=[]
        )
        read = faults.read_port(domain="comb")
        beat = Signal(range(_FAULT_BEATS))
        stop = read.data[-1]
        link(m, wiring.flipped(self.i_load), inner.i_load)
        link(m, wiring.flipped(self.i_add), inner.i_add)
        m.d.comb += [
            read.addr.eq(beat),
            self.o.payload.eq(inner.o.payload.as_value() ^ read.data[:-1]),
            self.o.valid.eq(inner.o.valid & ~stop),
            inner.o.ready.eq(self.o.ready & ~stop),
        ]
        with m.If(self.o.valid & self.o.ready & (beat != _FAULT_BEATS - 1)):
            m.d.sync += beat.eq(beat + 1)
        return m


class FaultyDecoder(FoldedDecoder):
    """A decoder with :class:`FaultyResidual`."""

    def _make_units(self) -> None:
        super()._make_units()
        self._residual = self._units["residual"] = FaultyResidual(self._residual)


@contextlib.contextmanager
def one_build_at_a_time() -> Iterator[None]:
    """Let the workers of a parallel test run build a design once."""
    folder = _build.default_build_dir()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def quick_build() -> Iterator[None]:
    """Build simulators that run slower: a few thousand cycles are not worth an optimisation."""
    flags = _build.FLAGS
    _build.FLAGS = tuple("-O1" if flag == "-O2" else flag for flag in flags)
    try:
        yield
    finally:
        _build.FLAGS = flags


@functools.cache
def simulation() -> Engine:
    """The shared simulation; reset it before use."""
    decoder = FaultyDecoder(decoder_parameters(binding()))
    probes = [*stream_names(lowered()), *ENGINE_STREAMS]
    with one_build_at_a_time(), quick_build():
        sim = make_engine(decoder, "cxxrtl", probes=probes, inner_signals=False)
    for name in ENGINE_STREAMS:
        sim.probe(name)
    return sim


@contextlib.contextmanager
def fault(beat: int, *, flip: int = 0, stop: bool = False) -> Iterator[None]:
    """Damage one beat of the residual stream: flip bits of its payload, or hold it back."""
    sim = simulation()
    (word,) = sim.memory_read("residual.faults", beat, 1)
    width = binding().shape.lanes * binding().wide_format.element.bits + SCALE_BITS
    sim.memory_load("residual.faults", beat, [flip | int(stop) << width])
    try:
        yield
    finally:
        sim.memory_load("residual.faults", beat, [word])
