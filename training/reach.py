"""Waits until the first node of a run listens, a minute at most: `python -m training.reach ADDRESS PORT`."""

import socket
import sys
import time

SECONDS = 60.0


def reach(address: str, port: int, seconds: float = SECONDS) -> None:
    """Returns as soon as something accepts connections there.

    Args:
        address: of the first node, a name or a number. port: its port.
        seconds: how long is tried.

    Raises:
        ValueError: nothing did in time.
    """
    end, reason = time.monotonic() + seconds, ""
    while (left := end - time.monotonic()) > 0:
        try:
            socket.create_connection((address, port), timeout=left).close()
            return
        except OSError as error:  # not there yet, refused, or on no route
            reason = str(error)
        time.sleep(min(0.5, max(0.0, end - time.monotonic())))
    raise ValueError(
        f"MASTER_ADDR={address} MASTER_PORT={port} did not answer for {seconds:.0f} seconds ({reason}). Start node 0 "
        "first, or at the same time; check the address, the port and the firewall between the nodes."
    )


if __name__ == "__main__":
    try:
        reach(sys.argv[1], int(sys.argv[2]))
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
