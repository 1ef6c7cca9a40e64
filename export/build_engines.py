"""The script that builds TensorRT plans: arguments and nothing else. `actvar-trt build` is the same.

python export/build_engines.py --depth 20 --fp16
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    # The checkout in the place of export/, where modules would be found under names that are not theirs.
    sys.path[:] = [str(here.parent), *(path for path in sys.path if Path(path).resolve() != here)]

    from actvar.cli.main import main

    sys.argv[1:1] = ["build"]
    main()
