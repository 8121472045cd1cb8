"""What is done with a trained model: `python -m serving <chat|web|merge|export> --help`."""

import logging
import sys
from collections.abc import Callable, Sequence

from serving.chat import chat
from serving.export_command import export
from serving.merge import merge
from serving.web import web

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"chat": chat, "web": web, "merge": merge, "export": export}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 2 and one sentence on standard error when the input is to blame."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        for one, run in COMMANDS.items():
            print(f"python -m serving {one:6} {str(run.__doc__).splitlines()[0]}")
        return 0
    if name not in COMMANDS:
        print(f"there is no command {name!r}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        COMMANDS[name](rest)
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
