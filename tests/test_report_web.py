"""The pages of runs and of a sweep in headless Chromium: nothing in the console, nothing fetched, everything drawn."""

import json
import sys
from pathlib import Path

import pytest

from evaluation.__main__ import main
from tests.test_report import write
from tests.tiny_world import write_dataset

pytestmark = pytest.mark.web

EVIL = "<script>alert(1)</script>"


def write_runs(folder: Path) -> list[Path]:
    """Two trained runs on the tiny world's six test questions; a prediction is a script."""
    data = write_dataset(folder / "data")
    asked = [json.loads(line) for line in (data / "qa" / "test.jsonl").read_text().splitlines()]
    for name, right in (("lora", 5), ("full", 2)):
        rows = [one | {"prediction": one["answers"][0] if i < right else EVIL} for i, one in enumerate(asked)]
        write(folder / name / "predictions.jsonl", rows)
        write(folder / name / "predictions_zero.jsonl", rows[::-1])
        log = [
            {"step": i, "epoch": i / 4, "loss": 1 / i, "eval_loss": 1.1 / i, "eval_mrr": i / 9} for i in range(1, 9)
        ]
        write(folder / name / "log.jsonl", log)
        arguments = {"data_path": str(data), "use_lora": name == "lora", "lora_r": 8}
        (folder / name / "run.json").write_text(json.dumps({"arguments": arguments, "machine": EVIL}))
        (folder / name / "metrics.json").write_text(json.dumps({"minutes": 1.5, "parameters": 2e6}))
    return [folder / "lora", folder / "full"]


def write_sweep(folder: Path) -> Path:
    """A sweep of one stage and two objectives, as training/sweep_record.py writes it."""
    encoders = ["gat", EVIL]
    rates = {"low": 1e-4, "high": 1e-2, "log": True, "step": None}
    ended = {"state": "complete", "in_front": True, "minutes": 1.0, "reason": "", "folder": "f"}
    ended["evaluations"] = [{"step": step, "epoch": step / 10, "eval_loss": 1 / step} for step in (1, 2)]
    trials = []
    for i in range(3):
        params = {"learning_rate": 10.0 ** (i - 4), "graph_encoder": encoders[i % 2]}
        values = {"eval_loss": 1 / (1 + i), "exact_match": 0.2 * (3 - i)}
        trials.append(ended | {"number": i, "params": params, "values": values})
    trials.append(trials[0] | {"number": 3, "state": "failed", "values": {}, "in_front": False, "reason": EVIL})
    space = {"learning_rate": rates, "graph_encoder": {"values": encoders}}
    stage = {"name": "base", "from": None, "wanted": 4, "flags": {}, "space": space, "best": 2, "trials": trials}
    objectives = {"eval_loss": "minimize", "exact_match": "maximize"}
    record = {"file": "s.yaml", "recipe": {"model_name_or_path": "m"}, "objectives": objectives, "stages": [stage]}
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(record | {"trial_flags": {}, "prune": False, "seed": 0}))
    return folder


def opened(browser, page: Path, tmp_path: Path) -> list:
    """Opens a page, keeps a picture of it, and returns what the console and the network say."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    height = browser.execute_script("return document.documentElement.scrollHeight")
    browser.set_window_size(1000, min(height, 6000))
    browser.save_screenshot(str(tmp_path / f"{page.stem}.png"))
    print(tmp_path / f"{page.stem}.png", file=sys.stderr)
    sent = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = [line["params"]["request"]["url"] for line in sent if line["method"] == "Network.requestWillBeSent"]
    return [*browser.get_log("browser"), *(url for url in urls if url != page.as_uri())]


def drawn(browser) -> dict[str, int]:
    """How much of the page is there, and whether anything stands outside of it."""
    count = "return document.querySelectorAll(arguments[0]).length"
    return {
        name: browser.execute_script(count, name) for name in ("figure > svg", "polyline", "table", "script", "h2")
    }


def test_the_page_of_two_runs_opens(browser, tmp_path):
    runs = write_runs(tmp_path)
    main(["report", *map(str, runs), "--output", str(tmp_path / "report.html")])
    assert opened(browser, tmp_path / "report.html", tmp_path) == []
    found = drawn(browser)
    assert found["figure > svg"] == 5 and found["polyline"] == 6 and found["script"] == 0  # 2 charts, 3 subgraphs
    body = browser.execute_script("return document.body.innerText")
    assert "The difference in exact_match is" in body and EVIL in body
    wide = "return document.documentElement.scrollWidth <= window.innerWidth"
    browser.set_window_size(500, 800)
    assert browser.execute_script(wide), "a narrow window scrolls in its tables only"


def test_the_page_of_a_sweep_opens(browser, tmp_path):
    main(["report", str(write_sweep(tmp_path / "sweep")), "--output", str(tmp_path / "sweep.html")])
    assert opened(browser, tmp_path / "sweep.html", tmp_path) == []
    found = drawn(browser)
    assert found["figure > svg"] == 4 and found["script"] == 0
    body = browser.execute_script("return document.body.innerText")
    assert "4 trials: 3 complete, 1 failed" in body and EVIL in body and "Best of stage base: trial 2" in body
