"""Everything that only a GPU can show, in one command.

    python benchmarks/gpu_evidence.py --prepare .gpu            where there is a network
    python benchmarks/gpu_evidence.py --run FOLDER --out DIR    where there is a GPU, and perhaps no network

The first collects wheels, bundles and plans, and packs them in pieces. The second joins the pieces, installs the wheels
beside the machine's own packages, and runs the steps of `gpu/steps.py` in order of importance, each case in a process
and within a time of its own. Each step's JSON is written as its cases end, and summary.json with it; the summary in
words is printed at the end. PyTorch must be there already, and the checkout that was prepared from.

Exit codes: 0, everything was done; 1, something failed, ran out of time, or cannot be used; 2, a wrong option;
3, nothing failed, but some of it was skipped, and the summary says why.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent)]  # a GPU machine has a checkout, and nothing installed

    from actvar.benchmarks.gpu.command import main

    sys.exit(main(__doc__))
