"""`python -m loreloop.cli` is `loreloop`, but for the working folder, which the interpreter puts before all packages.

It is taken off before anything of a library is imported. What the interpreter itself has imported by then is out of
reach: only `loreloop`, or `python -P -m loreloop.cli`, is wholly safe in a folder of somebody else's.
"""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[0] == os.getcwd():
        del sys.path[0]
    from loreloop.cli.main import main

    main()
