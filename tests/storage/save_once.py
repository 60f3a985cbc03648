"""One save in a process of its own, for strace: python -I -S save_once.py REPOSITORY RUN STEP [MISTAKE].

It tells what happens by system calls that strace shows and that do nothing, `access` of names that do not exist:
/begin, /saved-4 and /last-4 for the acknowledgements, /end. Exit code 0: done; 74 and 73: refused with a UserError;
99: another exception escaped, a traceback in a real command.
"""

import os
import sys

repository, run, step, *plant = sys.argv[1:]
sys.path += [repository, repository + "/tests/storage"]

from pathlib import Path  # noqa: E402

import storage_harness  # noqa: E402

from tiny_transformer.errors import UserError  # noqa: E402


class Announced(storage_harness.Acknowledged):
    def note(self, fs, what, step):
        os.access(f"/{what}-{step}", 0)


save_step = storage_harness.save
if plant:
    import planted

    save_step = getattr(planted, plant[0])(setattr)

os.access("/begin", 0)
try:
    save_step(Path(run), int(step), Announced(), storage_harness.Fs())
    code = 0
except UserError as error:
    code = int(error.exit_code) if len(error.lines()) <= 3 else 98
except BaseException:
    code = 99
os.access("/end", 0)
os._exit(code)
