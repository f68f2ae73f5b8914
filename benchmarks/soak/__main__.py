"""Hours of random faults on captions, curate and images; afterwards all bytes must be right.

    python -m benchmarks.soak --minutes 120 [--out runs/soak] [--seed 0] [--rounds N]

First it makes a run that nothing disturbs. Then each round makes the same run again in a new folder
(on local disk or a GCS server), with two workers for each stage, while random faults strike:
signals, full disks, damaged files, servers in trouble. Afterwards it does what the printed
messages say until every command succeeds and `verify` finds nothing, and compares the SHA-256 of
every shard, plan and index, and the ids of dead letters, with those of the undisturbed run.

Captions come from vLLM's server. A model rounds differently in another batch, so its answers are
kept, and the same request gets the same answer in all rounds. Every `--vllm-every`th round runs
vLLM in the workers instead, one prompt at a time. `--captions words` needs no language model.

Each round is a line of OUT/rounds.jsonl. What went wrong is kept in OUT/failures. The table at the
end is also printed after Ctrl-C. Exit code 1 if anything was wrong.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tabulate import tabulate

from benchmarks.soak.commands import ROOT
from benchmarks.soak.proxy import Troubles, troubled
from benchmarks.soak.rounds import Kind, Round, run_round, undisturbed
from benchmarks.soak.servers import MODEL, KeptAnswers, gcs, vllm_server

CONFIGS = ROOT / "pipelines" / "configs"
PROBLEMS = (
    *("loss", "bytes", "unknown file", "traceback", "remedy", "exit code", "hang", "orphans"),
    "soak",
)
"""Kinds of problems: "remedy" is a printed remedy that leads nowhere, "soak" our own error."""


def kind(name: str, num_captions: int, settings: list[str]) -> Kind:
    """Return a kind of run of the built-in models."""
    text = [str(CONFIGS / "demo.yaml"), f"num_captions={num_captions}", "captions_per_shard=8"]
    text += ["captions.oversampling=1.5", "captions.sampling.max_new_tokens=24", *settings]
    images = [str(CONFIGS / "demo-images.yaml"), "captions_per_shard=4", "generator.num_steps=4"]
    images += ["engine.batch_timeout_s=20", "engine.batch_size=16"]
    return Kind(name, {"captions": text, "curate": text, "images": images}, name == "server")


def kinds(out: Path, url: str) -> dict[str, Kind]:
    """Return the kinds of runs by name."""
    words = out / "captions.txt"
    words.write_text("\n".join(f"a cat that sits on chair number {n}" for n in range(100)))
    server = ["engine.name=openai", f"engine.base_url={url}/v1", f"model={MODEL}"]
    server += ["engine.concurrency=2", "engine.timeout_s=5"]
    vllm = ["engine.max_num_seqs=1", "engine.prefix_caching=false", "engine.kv_cache_gib=0.25"]
    file = ["captions.variant=file", f"captions.captions_file={words}"]
    file += ["curation.near_duplicate_threshold=null"]
    return {
        "server": kind("server", 48, server),
        "vllm": kind("vllm", 16, vllm),
        "words": kind("words", 16, file),
    }


class Soak:
    """Loop over the rounds, and the table of their results.

    Attributes:
        rounds: Results of the rounds so far.
    """

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.rounds: list[Round] = []
        self._options = options
        self._out = out
        self._answers = KeptAnswers()

    def run(self) -> None:
        """Do rounds until the time is over."""
        options, number = self._options, 0
        with gcs() as files, troubled(self._answers) as model:
            known = kinds(self._out, model.url)
            main = known[options.captions]
            self._undisturbed(main)
            deadline = time.monotonic() + 60 * options.minutes
            print(f"an undisturbed run has {len(main.digests)} files", flush=True)
            while time.monotonic() < deadline and number < (options.rounds or number + 1):
                number += 1
                every = options.vllm_every
                is_vllm = options.captions == "server" and every and number % every == 0
                chosen = known["vllm"] if is_vllm else main
                if not chosen.digests:
                    self._undisturbed(chosen)
                self._round(chosen, number, files if number % 2 == 0 else None, model)

    def _undisturbed(self, chosen: Kind) -> None:
        folder = self._out / f"undisturbed-{chosen.name}"
        if chosen.asks_server:
            # Only to fill the answers: the rounds get them faster, and so does the run below.
            log = self._out / "vllm.log"
            with vllm_server(log) as self._answers.server:
                undisturbed(chosen, folder)
            self._answers.server = None
            shutil.rmtree(folder)
        first = dict(chosen.digests)
        undisturbed(chosen, folder)
        if first and first != chosen.digests:
            raise RuntimeError("two undisturbed runs differ")
        shutil.rmtree(folder)

    def _round(self, chosen: Kind, number: int, files: Troubles | None, model: Troubles) -> None:
        done = run_round(chosen, self._out, number, self._options.seed, files, model)
        if self._answers.num_unknown:
            what = f"{self._answers.num_unknown} requests were not those of the undisturbed run"
            done.problems.append({"kind": "bytes", "what": what, "log": ""})
            self._answers.num_unknown = 0
        self.rounds.append(done)
        with (self._out / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(done.line()) + "\n")
        wrong = "; ".join(f"{p['kind']}: {p['what']}" for p in done.problems[:3])
        print(
            f"round {number} ({done.storage}, {done.captions}): {done.seconds:.0f} s, "
            f"{done.starts} starts, {sum(done.faults.values())} faults, "
            f"{sum(done.remedies.values())} remedies{f'; WRONG: {wrong}' if wrong else ''}",
            flush=True,
        )

    def num_wrong(self) -> int:
        """Return how many rounds went wrong."""
        return sum(bool(done.problems) for done in self.rounds)

    def table(self) -> str:
        """Return faults, remedies and problems of all rounds as a table."""
        counted: dict[str, Counter[str]] = {"fault": Counter(), "remedy": Counter()}
        wrong = Counter(dict.fromkeys(PROBLEMS, 0))
        for done in self.rounds:
            counted["fault"].update(done.faults)
            counted["remedy"].update(done.remedies)
            wrong.update(problem["kind"] for problem in done.problems)
        stores = Counter(f"rounds on {done.storage}" for done in self.rounds)
        writers = Counter(f"rounds with captions from {done.captions}" for done in self.rounds)
        rows = [("rounds", "all", len(self.rounds)), ("rounds", "went wrong", self.num_wrong())]
        rows += [("rounds", name, number) for name, number in sorted((stores + writers).items())]
        rows.append(("processes", "started", sum(done.starts for done in self.rounds)))
        for what, names in counted.items():
            rows += [(what, name, number) for name, number in sorted(names.items())]
        rows += [("problem", name, number) for name, number in wrong.items()]
        return str(tabulate(rows, ("", "", "number"), "plain"))


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end the body as Ctrl-C does."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, help="stop after so many rounds")
    parser.add_argument("--captions", choices=["server", "words"], default="server")
    parser.add_argument("--vllm-every", type=int, default=15, help="0: never vLLM in the workers")
    options = parser.parse_args()
    out = options.out.absolute() / f"soak-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    out.mkdir(parents=True)
    print(f"seed {options.seed}, {out}", flush=True)
    soak = Soak(options, out)
    try:
        with stoppable():
            soak.run()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    print(soak.table(), flush=True)
    return 1 if soak.num_wrong() or not soak.rounds else 0


if __name__ == "__main__":
    sys.exit(main())
