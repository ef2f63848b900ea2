"""What a gateway counts about itself, as Prometheus text. Plain integers: a request touches two dozen of them."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from serving.metering import Outcome, Tokens

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
TOKEN_KINDS = ("input", "cached_input", "output")
NO_MODEL = ""
"""Of a request that was refused before its model was known: what clients write there is never a label."""


class Histogram:
    """Times in seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Total:
    """What was answered under one model's name, whichever replica did it."""

    __slots__ = ("cached_input", "input", "output", "requests")

    def __init__(self) -> None:
        self.requests: Counter[Outcome] = Counter()
        self.input = self.cached_input = self.output = 0

    def finished(self, tokens: Tokens, outcome: Outcome) -> None:
        """A request is over."""
        input, cached_input, output = tokens
        self.requests[outcome] += 1
        self.input += input
        self.cached_input += cached_input
        self.output += output


class Served:
    """What one replica of one model did for this gateway's requests."""

    __slots__ = ("cached_input", "duration", "input", "inter_token", "output", "queue", "ttft")

    def __init__(self) -> None:
        self.ttft = Histogram()  # from the request's arrival to its first token, streams only
        self.inter_token = Histogram(TOKEN_SECONDS)  # mean gap between the tokens of a stream
        self.queue = Histogram()  # from the request's arrival until it was sent to the replica
        self.duration = Histogram()
        self.input = self.cached_input = self.output = 0

    def finished(self, tokens: Tokens, *, began: float, sent: float, first: float, ended: float) -> None:
        """A request is over; times on one monotonic clock, `first` 0 when nothing was streamed."""
        input, cached_input, output = tokens
        self.queue.observe(sent - began)
        self.duration.observe(ended - began)
        if first:
            self.ttft.observe(first - began)
            if output > 1:
                self.inter_token.observe((ended - first) / (output - 1))
        self.input += input
        self.cached_input += cached_input
        self.output += output


class GatewayMetrics:
    """Counters since the process started. Labels are models, replicas and reasons, never firms or keys."""

    def __init__(self) -> None:
        self.refusals: Counter[tuple[str, str]] = Counter()  # (model, code)
        self.retries: Counter[str] = Counter()  # replica
        self.uncounted: Counter[str] = Counter()  # replica
        self._totals: dict[str, Total] = {}  # by model
        self._served: dict[tuple[str, str], Served] = {}

    def total(self, model: str) -> Total:
        """The counters of a model."""
        found = self._totals.get(model)
        if found is None:
            found = self._totals[model] = Total()
        return found

    def served(self, model: str, replica: str) -> Served:
        """The counters of a replica."""
        found = self._served.get((model, replica))
        if found is None:
            found = self._served[model, replica] = Served()
        return found

    def forget(self, alive: Collection[str]) -> None:
        """Drop the series of replicas that are gone; what they did stays in the counters of their models."""
        for name in [name for name in self._served if name[1] not in alive]:
            del self._served[name]
        for counter in (self.retries, self.uncounted):
            for replica in [replica for replica in counter if replica not in alive]:
                del counter[replica]

    def render(self, gauges: Mapping[str, float], replicas: Mapping[str, Mapping[tuple[str, str], float]]) -> bytes:
        """The exposition format, version 0.0.4. `replicas`: gauge → (model, replica) → what it is now."""
        lines: list[str] = []
        totals = self._totals.items()
        _counter(lines, "requests_total", ("model", "outcome"), [
            ((model, outcome), count) for model, total in totals for outcome, count in total.requests.items()
        ])  # fmt: skip
        _counter(lines, "refusals_total", ("model", "code"), self.refusals.items())
        _counter(lines, "tokens_total", ("model", "kind"), [
            ((model, kind), getattr(total, kind)) for model, total in totals for kind in TOKEN_KINDS
        ])  # fmt: skip
        _counter(lines, "retries_total", ("replica",), (((replica,), n) for replica, n in self.retries.items()))
        _counter(lines, "uncounted_total", ("replica",), (((replica,), n) for replica, n in self.uncounted.items()))
        where = ("model", "replica")
        served = self._served.items()
        _counter(lines, "prompt_tokens_total", where, ((name, one.input) for name, one in served))
        _counter(lines, "prefix_hit_tokens_total", where, ((name, one.cached_input) for name, one in served))
        _counter(lines, "output_tokens_total", where, ((name, one.output) for name, one in served))
        _histogram(lines, "time_to_first_token_seconds", {name: one.ttft for name, one in served})
        _histogram(lines, "inter_token_seconds", {name: one.inter_token for name, one in served})
        _histogram(lines, "queue_seconds", {name: one.queue for name, one in served})
        _histogram(lines, "duration_seconds", {name: one.duration for name, one in served})
        for name, rows in replicas.items():
            lines.append(f"# TYPE heliu_gateway_{name} gauge")
            lines += [f"heliu_gateway_{name}{{{_labels(where, at)}}} {value:g}" for at, value in sorted(rows.items())]
        for name, value in gauges.items():
            lines += [f"# TYPE heliu_gateway_{name} gauge", f"heliu_gateway_{name} {value:g}"]
        return ("\n".join(lines) + "\n").encode()


def _counter(lines: list[str], name: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], int]]) -> None:
    lines.append(f"# TYPE heliu_gateway_{name} counter")
    lines += [f"heliu_gateway_{name}{{{_labels(labels, values)}}} {count}" for values, count in sorted(rows)]


def _histogram(lines: list[str], name: str, rows: Mapping[tuple[str, str], Histogram]) -> None:
    lines.append(f"# TYPE heliu_gateway_{name} histogram")
    for at, histogram in sorted(rows.items()):
        labels = _labels(("model", "replica"), at)
        running = 0
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            running += count
            lines.append(f'heliu_gateway_{name}_bucket{{{labels},le="{bound}"}} {running}')
        lines.append(f"heliu_gateway_{name}_sum{{{labels}}} {histogram.total:g}")
        lines.append(f"heliu_gateway_{name}_count{{{labels}}} {running}")


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return ",".join(f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
