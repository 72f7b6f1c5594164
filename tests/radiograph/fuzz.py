"""Mutated films through the isolated reader: what comes back is a film or a FilmError, soon, and the next film is read.

python -m tests.radiograph.fuzz --cases 100000      prints counts by format and code, and what must not be
python -m tests.radiograph.fuzz --save 4711 FILE    writes one case
"""

import argparse
import io
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.isolation import IsolatedReader

SLOW, LARGE = 5.0, 2**30  # seconds, bytes: no film of a few kilobytes may take so much
_NUMBERS = (0, 1, 2, 8, 16, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_ELEMENTS = [(0x28, n) for n in (2, 4, 8, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103, 0x30, 0x1050, 0x1052, 0x1053)]
_MARKS = (b"\xff\xc0", b"\xff\xc3", b"\xff\xf7", b"\xff\x51", b"\xff\xda")  # JPEG: sizes, components, scans
_ELEMENTS += [(2, 0), (2, 0x10), (8, 0x60), (0x18, 0x1164), (0x7FE0, 0x10), (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)]


@cache
def seeds() -> dict[str, tuple[str, bytes]]:
    """A small good film of each kind: suffix and content."""
    import gzip

    import nibabel
    from PIL import Image
    from pydicom.data import get_testdata_file
    from pydicom.encaps import encapsulate
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGBaseline8Bit,
        RLELossless,
    )

    from tests.radiograph.dicom_factory import corner_film, dataset, lut_item

    film, eight = corner_film(48, 40), corner_film(48, 40, bits=8)

    def dicom(pixels=film, compress=None, frame=None, **options):
        made, stream = dataset(pixels, **options), io.BytesIO()
        if frame is not None:
            made.PixelData = encapsulate([frame])
            made["PixelData"].VR = "OB"
        if compress is not None:
            made.compress(compress, generate_instance_uid=False)
        made.save_as(stream, enforce_file_format=True)
        return stream.getvalue()

    def picture(pixels, kind):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        return stream.getvalue()

    window = {"WindowCenter": 2000, "WindowWidth": 3000, "RescaleSlope": 2, "RescaleIntercept": -5, "PixelSpacing": [0.2, 0.1]}
    table = {"VOILUTSequence": lut_item(np.arange(4096) * 2, bits=13), "PhotometricInterpretation": "MONOCHROME1"}
    raw, jpeg = dicom(**window), picture(eight, "JPEG")
    nifti = nibabel.Nifti1Image(film.T[..., None].astype(np.int16), np.diag([-0.2, -0.1, 1, 1])).to_bytes()
    made = {"raw": raw, "table": dicom(**table), "implicit": dicom(syntax=ImplicitVRLittleEndian), "no preamble": raw[132:]}
    made |= {"deflated": dicom(syntax=DeflatedExplicitVRLittleEndian), "rle": dicom(compress=RLELossless)}
    made |= {
        "j2k": dicom(compress=JPEG2000Lossless),
        "jpeg in dicom": dicom(eight, frame=jpeg, syntax=JPEGBaseline8Bit, bits=8),
    }
    found = {kind: (".dcm", content) for kind, content in made.items()}
    found |= {"nifti": (".nii", nifti), "nifti.gz": (".nii.gz", gzip.compress(nifti, mtime=0)), "jpeg": (".jpg", jpeg)}
    found |= {"png": (".png", picture(film, "PNG")), "png 8": (".png", picture(eight, "PNG"))}
    names = {"jpeg-ls": "JPEGLSNearLossless_16.dcm", "jpeg lossless": "JPEG-LL.dcm", "jpeg extended": "JPEG-lossy.dcm"}
    for kind, name in names.items():
        if path := get_testdata_file(name, download=False):
            found[kind] = (".dcm", Path(path).read_bytes())
    return found


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one to three faults of the kinds that disks, networks and senders make."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        head = bool(rng.integers(2))  # half of the faults hit what decides most
        at = int(rng.integers(min(len(data), 600) if head else len(data))) if data else 0
        run = int(2 ** rng.uniform(0, 9))
        match rng.integers(8):
            case 0 | 1:
                for place in (at, *rng.integers(0, max(len(data), 1), rng.integers(4)).tolist()):
                    data[place : place + 1] = bytes(b ^ 1 << rng.integers(8) for b in data[place : place + 1])
            case 2:
                data[at : at + run] = bytes([rng.choice([0, 255, 0x80])]) * len(data[at : at + run])
            case 3:
                data[at : at + run] = rng.bytes(run)
            case 4:
                del data[max(at, 2) if head else at :]
            case 5:
                data[at:at] = data[at : at + run] if head else rng.bytes(run)
            case 6:
                to = int(rng.integers(max(len(data), 1)))
                data[at : at + run], data[to : to + run] = data[to : to + run], data[at : at + run]
            case 7:
                _change_number(data, rng, at)
    return bytes(data)


def _change_number(data: bytearray, rng: np.random.Generator, at: int) -> None:
    """Set an integer of a header to one that programs get wrong; in DICOM a chosen element, in JPEG a size."""
    order, size = ("little", "big")[rng.integers(2)], (1, 2, 4)[rng.integers(3)]
    group, element = _ELEMENTS[rng.integers(len(_ELEMENTS))]
    places = [data.find(group.to_bytes(2, "little") + element.to_bytes(2, "little")) + 8 - 2 * int(rng.integers(3))]
    places += [data.find(mark) + int(rng.integers(2, 12)) for mark in _MARKS]
    places = [place for place in places if place > 12] or [at]
    place = places[rng.integers(len(places))]
    data[place : place + size] = (_NUMBERS[rng.integers(len(_NUMBERS))] % 256**size).to_bytes(size, order)


def case(number: int) -> tuple[str, str, bytes]:
    """Kind, suffix and content of a case, the same for the same number."""
    kinds = [*seeds()]
    kind = kinds[number % len(kinds)]
    suffix, content = seeds()[kind]
    return kind, suffix, mutated(content, np.random.default_rng(number))


def highest(reader: IsolatedReader) -> int:
    """Most memory that the worker which reads now ever had, bytes; 0 where it cannot be seen."""
    try:
        server = reader._server.pid
        (worker, *_) = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        return 1024 * int(Path(f"/proc/{worker}/status").read_text().split("VmHWM:")[1].split()[0])
    except (AttributeError, OSError, ValueError, IndexError):
        return 0


def fuzz(numbers, reader: IsolatedReader, folder: Path, until: float = float("inf")) -> tuple[Counter, dict[str, list]]:
    """Read cases until a time of ``time.monotonic``: counts of (kind, outcome), and the numbers of what must not be."""
    counts: Counter = Counter()
    wrong: dict[str, list] = {name: [] for name in ("foreign", "slow", "large", "crashed", "memory", "next film")}
    good = folder / "good.dcm"
    good.write_bytes(seeds()["raw"][1])
    for number in numbers:
        if time.monotonic() > until:
            break
        kind, suffix, content = case(number)
        path = folder / f"case{suffix}"
        path.write_bytes(content)
        began = time.monotonic()
        try:
            film = reader(path)
            outcome = "film" if np.isfinite(film.pixels).all() and film.pixels.dtype == np.float32 else "no finite film"
        except FilmError as error:
            outcome = error.code
            wrong["crashed"] += [number] if error.code in ("DecoderCrashed", "DecoderTimeout") else []
            wrong["memory"] += [number] if error.code == "OutOfMemory" else []
        except Exception as error:
            outcome = type(error).__name__
        if outcome in ("no finite film", "ReaderNotStarted") or "Error" in outcome or "Exception" in outcome:
            wrong["foreign"].append((number, outcome))
        if time.monotonic() - began > SLOW:
            wrong["slow"].append((number, round(time.monotonic() - began, 1)))
        if highest(reader) > LARGE:
            wrong["large"].append(number)
            reader.close()
        if number % 500 == 0 or outcome in ("DecoderCrashed", "DecoderTimeout", "OutOfMemory"):
            try:
                reader(good)
            except FilmError:
                wrong["next film"].append(number)
        counts[kind, outcome] += 1
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--save", nargs=2, metavar=("CASE", "FILE"))
    given = parser.parse_args()
    if given.save:
        Path(given.save[1]).write_bytes(case(int(given.save[0]))[2])
        return 0
    began, reader = time.monotonic(), IsolatedReader()
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = fuzz(range(given.first, given.first + given.cases), reader, Path(folder))
    reader.close()
    for (kind, outcome), count in sorted(counts.items()):
        print(f"{kind:15} {outcome:20} {count}")
    print(f"{sum(counts.values())} cases in {time.monotonic() - began:.0f} s")
    for name, numbers in wrong.items():
        print(f"{name}: {len(numbers)} {numbers[:20]}")
    return int(any(wrong[name] for name in ("foreign", "slow", "large", "next film")))


if __name__ == "__main__":
    sys.exit(main())
