"""Exit status 0 if the server on this machine is ready for requests: the health check of the image.

python deploy/healthcheck.py         # port 8000
python deploy/healthcheck.py 8001
"""

import sys
import urllib.error
import urllib.request

TIMEOUT = 5  # seconds


def main() -> None:
    port = sys.argv[1] if len(sys.argv) > 1 else "8000"
    address = f"http://127.0.0.1:{port}/readyz"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT):
            print("ready")
    except OSError as error:  # no connection, no answer in time, or the status 503
        sys.exit(f"not ready: {error}")


if __name__ == "__main__":
    main()
