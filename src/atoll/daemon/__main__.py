"""`python -m atoll.daemon HOME READY_FD`; started by `atoll.host.start`."""

import sys

from atoll.daemon.main import main

sys.exit(main())
