"""How a call is captured, with a stand-in for `torch.cuda` that has two devices and computes nothing."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from sdpersonal.models import cuda_graphs, oom
from sdpersonal.models.cuda_graphs import CapturedCall


class Stream:
    def __init__(self, device):
        self.device, self.device_index = torch.device(device), torch.device(device).index

    def wait_stream(self, other):
        assert other.device == self.device


class Card:
    """`torch.cuda` on a machine with two cards. As on a real one, kernels of a device run on its current stream, and
    a graph captures those of one stream."""

    def __init__(self):
        self.current, self.streams, self.events = 0, [Stream("cuda:0"), Stream("cuda:1")], []
        self.capturing = None
        self.CUDAGraph = lambda: SimpleNamespace(captured=0, replay=lambda: self.events.append("replay"))
        self.Stream = Stream

    @contextmanager
    def device(self, device):
        before, self.current = self.current, torch.device(device).index
        yield
        self.current = before

    @contextmanager
    def stream(self, stream):
        before, self.streams[stream.device_index] = self.streams[stream.device_index], stream
        with self.device(stream.device):
            yield
        self.streams[stream.device_index] = before

    @contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode="global"):
        with self.stream(stream or Stream("cuda:0")):
            self.capturing = graph, self.streams[self.current]
            yield
            self.capturing = None

    def launch(self, device):
        if self.capturing and self.streams[torch.device(device).index] is self.capturing[1]:
            self.capturing[0].captured += 1
        else:
            self.events.append("kernel")

    def current_stream(self, device):
        return self.streams[torch.device(device).index]

    def synchronize(self, device=None):
        self.events.append(f"wait for {self.current if device is None else torch.device(device).index}")

    def empty_cache(self):
        self.events.append("release")

    def is_initialized(self):
        return True

    def memory_reserved(self, device):
        return 0


@pytest.fixture
def card(monkeypatch):
    card = Card()
    for name in [name for name in dir(card) if not name.startswith("_") and hasattr(torch.cuda, name)]:
        monkeypatch.setattr(torch.cuda, name, getattr(card, name))
    cuda_graphs._capture_stream.cache_clear()
    yield card
    cuda_graphs._capture_stream.cache_clear()


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_graph_captures_the_kernels_of_the_models_device(card, device):
    calls = []

    def function():
        calls.append(card.launch(device))
        return ()

    call = CapturedCall(function, torch.device(device))
    assert call._graph.captured == 1
    assert card.current == 0 and [stream.device.index for stream in card.streams] == [0, 1]
    assert card.events == ["kernel", "kernel", f"wait for {device[-1]}", "release", "replay"]
    call.replay()
    assert len(calls) == cuda_graphs._WARM_UPS + 1 and card.events[-1] == "replay"


def test_a_captured_call_holds_no_reference_to_its_function(card):
    """The function of a training step holds the gradients, which hold the call: its memory would wait for the garbage
    collector, which does not see how full a card is."""
    call = CapturedCall(lambda: (), torch.device("cuda:0"))
    assert not any(callable(value) and not isinstance(value, SimpleNamespace) for value in vars(call).values())


def test_memory_is_released_after_the_device_is_synchronized(card):
    oom.drop_traceback(RuntimeError("CUDA error: out of memory"), torch.device("cuda:1"))
    oom.empty_cache()
    assert card.events == ["wait for 1", "release", "wait for 0", "release"]
