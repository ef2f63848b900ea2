"""`heliu simulate` on files: tables, plots, refusals. It needs no platform."""

import json
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from scheduler.cli import app
from tests.support.needs import need
from tests.support.sources import ROOT
from tests.unit.scheduler.test_traces import trace

RECORDING = {
    "nodes": [{"id": "n1", "pool": "optics-valley/a100", "gpu_milli": 2000}],
    "quotas": [
        {"firm_id": f"firm_{name}", "pool": "optics-valley/a100", "nominal_milli": 1000} for name in ("kite", "reed")
    ],
    "tree": [{"node": "studios", "parent": None}]
    + [{"node": f"firm_{name}", "parent": "studios"} for name in ("kite", "reed")],
    "work": [
        {
            "id": f"job_{i}", "firm_id": f"firm_{('kite', 'reed')[i % 2]}", "pools": ["optics-valley/a100"],
            "gpu_milli": 1000, "submitted_at": f"2026-11-02T00:0{i}:00Z", "expected_seconds": 600, "ran_seconds": 600,
        }
        for i in range(6)
    ],
}  # fmt: skip


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "recording.json"
    path.write_text(json.dumps(RECORDING))
    return path


def simulate(*words: object) -> Result:
    return CliRunner().invoke(app, ["simulate", *map(str, words)], env={"COLUMNS": "200"})


def refused(*words: object) -> str:
    result = simulate(*words)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_runs_stand_side_by_side_by_firm_and_as_a_whole(recording: Path) -> None:
    result = simulate("--trace", recording, "--set", "quota.kite.a100=2", "--set", "quota.reed.a100=0", "--price", "12")
    assert result.exit_code == 0, result.output
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if "│" in line]
    firms = {tuple(line[:3]): line[3:] for line in lines if len(line) == 11}
    assert firms["kite", "standard", "as it is"][:4] == ["3", "8 min", "16 min", "16 min"]
    assert firms["", "", "changed"][-2:] == ["¥6.00", "1"], "reed borrows all at first"
    whole = {line[0]: line[1:] for line in lines if len(line) == 7}
    assert whole["as it is"] == ["96.8%", "1.000", "0", "0.0", "¥12.00", "0.5"]
    assert float(whole["changed"][1]) < 0.99, "who has all of the quota waits less"


def test_the_same_in_json_and_twice_the_same(recording: Path) -> None:
    first, second = (simulate("--trace", recording, "--set", "quota.kite.a100=2", "--json") for _ in range(2))
    assert first.output == second.output
    runs = json.loads(first.output)
    assert {name: len(run["groups"]) for name, run in runs.items()} == {"as it is": 2, "changed": 2}
    assert runs["as it is"]["groups"][0]["wait_p50"] == 480


def test_both_readmes_show_what_the_command_says() -> None:
    pages = [(ROOT / page).read_text("utf-8") for page in ("README.md", "README.zh-CN.md")]
    (command,) = {
        line for page in pages for line in page.splitlines() if line.startswith("$ heliu simulate --trace examples/")
    }
    shown = [page.partition(f"{command}\n")[2].partition("```")[0] for page in pages]
    words = [word.replace("examples/", f"{ROOT}/examples/") for word in command.split()[3:]]
    assert shown == [simulate(*words).output] * 2


def test_plots_are_drawn_as_svg_and_png_and_twice_the_same(recording: Path, tmp_path: Path) -> None:
    need(find_spec("matplotlib") is not None, "matplotlib", "run `make setup`, or pip install 'heliu[plots]'")
    files = [tmp_path / name for name in ("a.svg", "b.svg", "a.png", "b.png")]
    plots = [word for file in files for word in ("--plot", file)]
    result = simulate("--trace", recording, "--set", "quota.kite.a100=2", *plots)
    assert result.exit_code == 0, result.output
    a_svg, b_svg, a_png, b_png = (file.read_bytes() for file in files)
    words = "".join(ElementTree.fromstring(a_svg).itertext())
    assert all(word in words for word in ("as it is", "changed", "Accelerators in use", "kite · standard"))
    assert a_png.startswith(b"\x89PNG")
    assert (a_svg, a_png) == (b_svg, b_png)
    assert "name a file that ends in .svg, .png" in refused("--trace", recording, "--plot", tmp_path / "plot.gif")


def test_a_public_trace_is_played_on_its_nodes(tmp_path: Path) -> None:
    nodes, tasks = trace(tmp_path)
    result = simulate("--trace", tasks, "--nodes", nodes, "--set", "quota.be.g2=16", "--json")
    assert result.exit_code == 0, result.output
    assert {group["firm_id"]: group["ended"] for group in json.loads(result.output)["changed"]["groups"]} == {
        "firm_be": 1,
        "firm_ls": 2,
    }


def test_what_is_kept_can_be_played_again(recording: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    first = simulate("--trace", recording, "--since", "2026-11-02T00:01:00", "--save", kept, "--json")
    assert len(json.loads(kept.read_text())["work"]) == 5
    assert simulate("--trace", kept, "--json").output == first.output


def test_what_is_wrong_is_said(recording: Path, tmp_path: Path) -> None:
    nodes, tasks = trace(tmp_path)
    assert "there is" not in (said := refused("--trace", tmp_path / "nothing.json")) and "cannot be read" in said
    assert "'gamma' names 0 of firm_kite, firm_reed" in refused("--trace", recording, "--set", "quota.gamma.a100=1")
    assert "is no setting" in refused("--trace", recording, "--set", "quota.kite.a100=x")
    assert "--nodes NODES.csv" in refused("--trace", tasks)
    assert "not an amount of yuan" in refused("--trace", recording, "--price", "dear")
    tasks.write_text(tasks.read_text().replace("t2,1000", "t2,x"))
    assert "line 4: cpu_milli is 'x'" in refused("--trace", tasks, "--nodes", nodes)
    recording.write_text(json.dumps(RECORDING | {"work": [RECORDING["work"][0] | {"ran_seconds": -1}]}))
    assert "work.0.ran_seconds" in refused("--trace", recording)
    recording.write_text("{")
    assert "line 1" in refused("--trace", recording)


def test_the_example_in_the_repository_can_be_played() -> None:
    result = simulate("--trace", ROOT / "examples" / "recording.json", "--until", "2026-11-02T01:00:00", "--json")
    assert result.exit_code == 0, result.output
