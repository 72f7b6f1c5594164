"""The command line in a process of its own that ends, as if killed, at a point that a test chooses.

Processes are forked from one that has the package loaded, so each begins in no time.
"""

import multiprocessing
import os
import signal
import sys

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["monai_diffeo.cli.bundle", "monai_diffeo.watch", "highdicom", "ignite.engine"])

KILLED = {  # in the order in which a film meets them
    "with the first word of the journal": ("monai_diffeo.watch.Journal.put", True),
    "with a mask and no line": ("monai_diffeo.report.reporter.FilmReporter.done", False),
    "with DICOM results and no line": ("monai_diffeo.report.audit.AuditFile.append", False),
    "with a line of the audit": ("monai_diffeo.report.audit.AuditFile.append", True),
    "with a line of the report": ("monai_diffeo.report.writer.ReportWriter.write", True),
    "at the end": ("monai_diffeo.report.reporter.FilmReporter.end", False),
}


def start(words, *more, kill=None, environment=None, said=os.devnull):
    """Exit status of ``monai-diffeo``; minus 9 if it was killed at the point. What it says goes to a file."""
    process = CONTEXT.Process(target=_run, args=([*words, *more], kill, environment or {}, str(said)))
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


def _run(words, kill, environment, said):
    for stream in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    import torch

    from monai_diffeo.cli import program

    torch.set_num_threads(1)
    os.environ.update(environment)
    if kill == "poison":
        _patch("monai_diffeo.engines.evaluators.FilmEvaluator._film", False, "poison")
    elif kill:
        _patch(*KILLED.get(kill, kill))
    sys.argv = ["monai-diffeo", *words]
    program()


def _patch(name, after, only=""):
    import pkgutil

    owner, _, method = name.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    plain = getattr(owner, method)

    def killing(*args, **kwargs):
        if only not in str(args[-1]):
            return plain(*args, **kwargs)
        if after == "stored" and not isinstance(args[-1], bytes):
            return plain(*args, **kwargs)
        if after:
            plain(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, method, killing)
