"""Serve the site with live reload on http://127.0.0.1:PORT."""

import argparse
import os
import socket
import sys


def refusal(port):
    """Why the port cannot be served on, in one line, or None.

    Args:
        port: as the user wrote it.
    """
    if not port.isdigit() or not 0 < int(port) < 65536:
        return f"PORT must be a number from 1 to 65535, got {port!r}"
    with socket.socket() as server:
        # As the server itself does: a port in TIME_WAIT is free.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", int(port)))
        except PermissionError:
            return f"Port {port} needs special rights. Choose another: make serve PORT=8000"
        except OSError as error:
            other = int(port) + 1 if int(port) < 65535 else 8000
            return (
                f"Port {port} is taken ({error.strerror}). Choose another: make serve PORT={other}"
            )
    return None


def main(arguments=None):
    """Replace this process by `mkdocs serve`, or exit with status 1 and a one-line reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", default="8000")
    parser.add_argument("--check", action="store_true", help="look at the port and stop")
    options = parser.parse_args(arguments)
    reason = refusal(options.port)
    if reason:
        print(reason, file=sys.stderr)
        return 1
    if options.check:
        return 0
    command = [sys.executable, "-m", "mkdocs", "serve", "--livereload"]
    command += ["--dev-addr", f"127.0.0.1:{options.port}"]
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
