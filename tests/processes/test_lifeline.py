"""The lifeline of a child: when its supervisor is gone it is asked to end, and then made to."""

import os
import signal
import subprocess
import sys


def end_of(child: str) -> int:
    """Return the exit code of a child whose supervisor is gone while it does this."""
    lifeline, held = os.pipe()
    code = f"import signal, sys, time; from worker.lifeline import hold_on; {child}"
    process = subprocess.Popen([sys.executable, "-c", code, str(lifeline)], pass_fds=[lifeline])
    os.close(lifeline)
    os.close(held)
    return process.wait(20)


def test_it_is_asked_as_by_sigterm_even_while_it_is_starting() -> None:
    assert end_of("hold_on(int(sys.argv[1]), 60); time.sleep(60)") == -signal.SIGTERM


def test_one_that_does_not_answer_is_ended() -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    assert end_of(f"{deaf}; hold_on(int(sys.argv[1]), 0.1); time.sleep(60)") == os.EX_SOFTWARE
