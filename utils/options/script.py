"""How a script of tools/ ends: a user's mistake is one sentence, and never a traceback."""

import sys
from collections.abc import Callable

from utils.console import make_output_robust, say
from utils.errors import TOO_LITTLE_MEMORY, UserError, is_out_of_memory

MainFunction = Callable[[list[str] | None], None]


def run_script(main: MainFunction) -> None:
    """Run main(None) and exit.

    A UserError becomes one sentence on stderr and exit status 2, a failing disk or too little
    memory one sentence and status 1, Ctrl-C status 130. Output fails neither on the
    terminal's encoding nor on a closed pipe.
    """
    make_output_robust()
    try:
        main(None)
    except UserError as error:
        say(f"error: {error}", error=True)
        sys.exit(2)
    except OSError as error:
        say(f"error: {error}", error=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say(f"error: {str(error) or TOO_LITTLE_MEMORY}", error=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
