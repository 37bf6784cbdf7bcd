"""Start the prediction: ``python3 -I -S /usr/lib/clevis-attest/predict``."""

import signal
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - the Python of the machine is not ours
    sys.exit("tang-attest: predicting the next boot needs Python 3.11 or newer")

# Installed, the server's parser of event logs is beside this package; in a checkout, one directory further
# up.
_BESIDE = Path(__file__).resolve().parent.parent
sys.path[0] = str(_BESIDE)
if not (_BESIDE / "tang_attest").is_dir():
    sys.path.insert(1, str(_BESIDE.parent))

# A pipe that is closed, or Ctrl-C, ends this program as it ends others: without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)

import os  # noqa: E402 - only now is it known where to look for our own modules

from predict.command import main  # noqa: E402

sys.exit(main(sys.argv[1:], os.environ))
