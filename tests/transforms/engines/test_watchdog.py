import subprocess
import sys
import time


def watched(limit_s: float, body: str, after: str) -> "subprocess.CompletedProcess[str]":
    """Run a process that sleeps for `body` seconds under a watchdog, and for `after` without."""
    script = (
        "import time\n"
        "from transforms.engines.watchdog import watchdog\n"
        f"with watchdog({limit_s}, 'painting'):\n"
        f"    time.sleep({body})\n"
        f"time.sleep({after})\n"
        "print('done')\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_what_ends_in_time_goes_on() -> None:
    done = watched(0.5, body="0", after="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_what_hangs_ends_its_process_with_a_sentence() -> None:
    started = time.monotonic()
    done = watched(0.2, body="60", after="0")
    assert time.monotonic() - started < 30
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("painting took longer than 0.2 s")
    assert last.endswith("run the same command again to continue")
