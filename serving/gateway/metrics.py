"""What a gateway counts about itself, as Prometheus text. Plain integers: a request touches a dozen of them."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Times in seconds, per model."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total += seconds


class GatewayMetrics:
    """Counters since the process started. Labels are models, replicas and reasons, never firms or keys."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()  # (model, outcome)
        self.refusals: Counter[str] = Counter()  # code
        self.tokens: Counter[tuple[str, str]] = Counter()  # (model, kind)
        self.retries: Counter[str] = Counter()  # replica
        self.uncounted: Counter[str] = Counter()  # replica
        self.first_byte: dict[str, Histogram] = {}  # model
        self.duration: dict[str, Histogram] = {}  # model

    def took(self, into: dict[str, Histogram], model: str, seconds: float) -> None:
        """Observe a time of a model."""
        histogram = into.get(model)
        if histogram is None:
            histogram = into[model] = Histogram()
        histogram.observe(seconds)

    def render(self, gauges: Mapping[str, float]) -> bytes:
        """The exposition format, version 0.0.4."""
        lines: list[str] = []
        _counter(lines, "requests_total", ("model", "outcome"), self.requests.items())
        _counter(lines, "refusals_total", ("code",), (((code,), n) for code, n in self.refusals.items()))
        _counter(lines, "tokens_total", ("model", "kind"), self.tokens.items())
        _counter(lines, "retries_total", ("replica",), (((replica,), n) for replica, n in self.retries.items()))
        _counter(lines, "uncounted_total", ("replica",), (((replica,), n) for replica, n in self.uncounted.items()))
        _histogram(lines, "first_byte_seconds", self.first_byte)
        _histogram(lines, "duration_seconds", self.duration)
        for name, value in gauges.items():
            lines += [f"# TYPE heliu_gateway_{name} gauge", f"heliu_gateway_{name} {value:g}"]
        return ("\n".join(lines) + "\n").encode()


def _counter(lines: list[str], name: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], int]]) -> None:
    lines.append(f"# TYPE heliu_gateway_{name} counter")
    for values, count in sorted(rows):
        text = ",".join(f'{label}="{_escape(value)}"' for label, value in zip(labels, values, strict=True))
        lines.append(f"heliu_gateway_{name}{{{text}}} {count}")


def _histogram(lines: list[str], name: str, rows: Mapping[str, Histogram]) -> None:
    lines.append(f"# TYPE heliu_gateway_{name} histogram")
    for model, histogram in sorted(rows.items()):
        running = 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), histogram.counts, strict=True):
            running += count
            lines.append(f'heliu_gateway_{name}_bucket{{model="{_escape(model)}",le="{bound}"}} {running}')
        lines.append(f'heliu_gateway_{name}_sum{{model="{_escape(model)}"}} {histogram.total:g}')
        lines.append(f'heliu_gateway_{name}_count{{model="{_escape(model)}"}} {running}')


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
