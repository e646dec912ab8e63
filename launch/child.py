"""Becomes another program that dies with the launcher, on cores of its own.

    python -m launch.child --parent=PID [--cores=0,1] -- COMMAND...

The kernel kills it when the launcher ends, however that ends, so that a training whose
lease is taken over is never written to by two. Where there is no such kernel (outside
Linux) the lease alone has to do.
"""

import argparse
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Ties this process to its parent and replaces it by the command."""
    parser = argparse.ArgumentParser(prog="python -m launch.child")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--cores", default="")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args(argv)
    if sys.platform == "linux":
        # Of the libc that is loaded; the setting outlives execv.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if arguments.cores:
            os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    if os.getppid() != arguments.parent:
        sys.exit("error: the launcher has ended")  # between its start and ours
    os.execvp(arguments.command[0], arguments.command)


if __name__ == "__main__":
    main(sys.argv[1:])
