"""Run the command line until it touches a file in a given way, then kill it with SIGKILL.

    python killed.py EVENT PATTERN COUNT ARGUMENTS...

EVENT is Python's audit event (os.link, os.rename, os.mkdir; none comes of another name), PATTERN a
regular expression that the last path of the event ends in, COUNT how many such events it takes. The
process dies before the operation happens.
"""

import os
import re
import signal
import sys


def kill_at(event, pattern, count):
    """Kill this process before the count-th event on a path that ends in the pattern."""
    paths = re.compile(f"(?:{pattern})$")
    found = []

    def hook(name, arguments):
        if name != event:
            return
        source, path = arguments[0], arguments[int(name != "os.mkdir")]
        if paths.search(str(path)) and finishes(str(source)):
            found.append(path)
            if len(found) == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def finishes(source):
    """Whether what is moved is no manifest, or one that says that its stage is complete."""
    if "/manifests/" not in source:
        return True
    with open(source) as file:  # noqa: PTH123
        return '"complete": true' in file.read()


if __name__ == "__main__":
    kill_at(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    from distill.__main__ import main

    sys.exit(main(sys.argv[4:]))
