import subprocess
import sys
import time

from transforms.engines.watchdog import watchdog


def test_what_ends_in_time_goes_on() -> None:
    with watchdog(0.3, "nothing"):
        pass
    time.sleep(0.6)  # A timer that is still running would end these tests.


def test_what_hangs_ends_its_process_with_a_sentence() -> None:
    script = (
        "import time\n"
        "from transforms.engines.watchdog import watchdog\n"
        "with watchdog(0.2, 'painting'):\n"
        "    time.sleep(60)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert time.monotonic() - started < 30
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("painting took longer than 0.2 s")
    assert last.endswith("run the same command again to continue")
