"""Readers print nothing, and nobody else is silenced."""

import logging
import threading
import time
import warnings

import pytest

from monai_diffeo.radiograph.film import quiet


@pytest.fixture
def heard(monkeypatch):
    """What reaches a handler that is there from the beginning, as a terminal would show it."""
    lines = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = lambda record: lines.append(record.getMessage())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize(
    "name", ["pydicom", "pydicom.dataset", "pydicom.made.up", "nibabel.global", "PIL.TiffImagePlugin", "openjpeg"]
)
def test_no_logger_of_a_reader_is_heard_during_a_read(heard, name):
    with quiet():
        logging.getLogger(f"{name}.made_during_the_read").warning("SECRET")
        logging.getLogger(name).error("SECRET")
        with quiet():
            pass
        logging.getLogger(name).debug("SECRET")
        logging.getLogger("monai_diffeo.other").warning("ours")
        logging.getLogger("pydicomish").warning("foreign")
    logging.getLogger(name).warning("after")
    assert heard == ["ours", "foreign", "after"]


def test_a_handler_on_the_readers_own_logger_is_quiet_too(capfd):
    handler = logging.StreamHandler()
    logger = logging.getLogger("pydicom.dataset")
    logger.addHandler(handler)
    try:
        with quiet():
            logger.warning("SECRET")
        logger.warning("after")
    finally:
        logger.removeHandler(handler)
    assert capfd.readouterr().err == "after\n"


@pytest.mark.parametrize("action", ["default", "always", "error"])
def test_a_reader_does_not_warn_whatever_the_filters_say(action):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter(action)
        with quiet():
            warnings.warn("SECRET", stacklevel=1)
            warnings.warn("SECRET", DeprecationWarning, stacklevel=1)
        with quiet():  # its filter is in place by now
            warnings.warn("SECRET", stacklevel=1)
        if action == "error":
            with pytest.raises(UserWarning, match="after"):
                warnings.warn("after", stacklevel=1)
        else:
            warnings.warn("after", stacklevel=1)
    assert [str(w.message) for w in seen] == ([] if action == "error" else ["after"])


def test_a_read_that_fails_ends_the_silence():
    with pytest.raises(EOFError), quiet():
        raise EOFError
    with pytest.warns(UserWarning, match="after"):
        warnings.warn("after", stacklevel=1)


def test_another_thread_is_heard_during_a_slow_read(heard, capfd):
    """The reading thread is silent at the same time, also while the other one warns."""
    began, spoke = threading.Event(), threading.Event()

    def read():
        with quiet():
            began.set()
            assert spoke.wait(10)
            warnings.warn("SECRET", stacklevel=1)
            logging.getLogger("pydicom.dataset").warning("SECRET")

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        thread = threading.Thread(target=read)
        thread.start()
        assert began.wait(10)
        warnings.warn("foreign", stacklevel=1)
        logging.getLogger("pydicom.dataset").warning("foreign reader")  # somebody else reads with pydicom
        with quiet():
            warnings.warn("SECRET", stacklevel=1)
        warnings.warn("foreign again", stacklevel=1)
        spoke.set()
        thread.join()
    assert [str(w.message) for w in seen] == ["foreign", "foreign again"] and heard == ["foreign reader"]
    assert "SECRET" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("slow", [0.0, 0.2])
def test_a_slow_read_of_a_secretive_film_prints_nothing_and_hides_nothing(tmp_path, monkeypatch, heard, capfd, slow):
    """Two threads read; a third one warns meanwhile."""
    pytest.importorskip("pydicom")
    from monai_diffeo.radiograph import dicom
    from monai_diffeo.radiograph.reader import read_film
    from tests.radiograph.dicom_factory import corner_film, save

    path, read = save(tmp_path / "a.dcm", corner_film(), PatientID="SECRET"), dicom.dataset_of_file

    def chatty(*arguments):
        for _ in range(3):
            warnings.warn("SECRET", stacklevel=1)
            logging.getLogger("pydicom.dataset").warning("SECRET")
            time.sleep(slow / 3)
        return read(*arguments)

    monkeypatch.setattr(dicom, "dataset_of_file", chatty)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=read_film, args=(path,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(slow / 2)
        warnings.warn("foreign", stacklevel=1)
        logging.getLogger("foreign").warning("foreign")
        for thread in threads:
            thread.join()
    assert [str(w.message) for w in seen] == ["foreign"] and heard == ["foreign"]
    assert "SECRET" not in "".join(capfd.readouterr())


def test_warnings_are_shown_once_a_place_as_before():
    """Reading a film must not make other warnings begin anew."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        with quiet():
            pass
        for _ in range(3):
            warnings.warn("once", stacklevel=1)
            with quiet():
                pass
    assert len(seen) == 1
