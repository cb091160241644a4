"""A package of AOTInductor in this process: unpacked from verified bytes, loaded, run.

torch's own loader holds the interpreter's lock for a whole run, so that readers stand still while the processor
computes. The library is called by its C interface (torch/csrc/inductor/aoti_runtime/interface.h) instead, without the
lock. Must not know profiles.
"""

from __future__ import annotations

import ctypes
import io
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = "model.pt2"
_DESCRIPTIONS = ("_metadata.json", "_compile_flags.json", "_linker_flags.json")
_GNU_STACK, _EXECUTABLE = 0x6474E551, 1
_POINTER = ctypes.c_void_p


@contextmanager
def unpacked(package: bytes) -> Iterator[Path]:
    """The root of a package's files, in a private folder (mode 0700) that is gone afterwards: a loaded library does
    without. Raises ValueError for bytes that are no package.
    """
    with tempfile.TemporaryDirectory(prefix="spinextract-engine-") as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(package)) as archive:
                archive.extractall(folder)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{PACKAGE} is no AOTInductor package: {error}") from error
        yield Path(folder)


def library_of(folder: Path) -> Path:
    """The one library of an unpacked package; raises ValueError for another number, or where torch must help out."""
    libraries = sorted(folder.glob("*/data/aotinductor/*/*.so"))
    if len(libraries) != 1:
        raise ValueError(f"{PACKAGE} holds {len(libraries)} libraries, not one")
    fallbacks = [path for path in libraries[0].parent.glob("*.json") if not path.name.endswith(_DESCRIPTIONS)]
    if fallbacks:
        raise ValueError(f"{PACKAGE} needs operations that only torch has ({fallbacks[0].name})")
    return libraries[0]


def without_executable_stack(library: bytes) -> bytes:
    """The same library, asking for no executable stack; raises ValueError for what is no 64-bit ELF file.

    torch assembles the weights without the note that says so, and the linker supposes the worst: the process's stacks
    would become executable, and glibc 2.41 or newer refuses to load the library at all.
    """
    if library[:6] != b"\x7fELF\x02\x01":
        raise ValueError("the compiled library is no 64-bit little-endian ELF file")
    (start,), (size, number) = struct.unpack_from("<Q", library, 32), struct.unpack_from("<HH", library, 54)
    changed = bytearray(library)
    for offset in range(start, start + size * number, size):
        kind, flags = struct.unpack_from("<II", library, offset)
        if kind == _GNU_STACK:
            struct.pack_into("<I", changed, offset + 4, flags & ~_EXECUTABLE)
    return bytes(changed)


def make_loadable(package: Path) -> None:
    """Write the package again, its libraries without an executable stack."""
    with zipfile.ZipFile(package) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(package, "w") as archive:
        for name, content in files.items():
            changed = without_executable_stack(content) if name.endswith(".so") else content
            archive.writestr(zipfile.ZipInfo(name), changed)


def torch_loader(folder: Path, index: int) -> Any:
    """torch's own loader of an unpacked package, for a card (whose captured graph runs without the lock anyway)."""
    import torch

    library_of(folder)
    return torch._C._aoti.AOTIModelPackageLoader(str(folder), "model", True, 1, index)


class Library:
    """One loaded library for the CPU, for one thread at a time."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        import torch

        self._aoti = torch._C._aoti
        self.functions = ctypes.CDLL(str(path))
        self._handle = _POINTER()
        create = self.functions.AOTInductorModelContainerCreateWithDevice
        self._check(create(ctypes.byref(self._handle), ctypes.c_size_t(1), device.encode(), None))
        self.inputs = self._number("AOTInductorModelContainerGetNumInputs")
        self.outputs = self._number("AOTInductorModelContainerGetNumOutputs")

    def run(self, x: Any) -> list[Any]:
        """One tensor of the compiled shape and dtype (not checked) to the outputs; raises RuntimeError."""
        if not self._handle:
            raise RuntimeError("the compiled network is closed")
        inputs = (_POINTER * 1)(_pointer(self._aoti.unsafe_alloc_void_ptrs_from_tensors([x])[0]))
        outputs = (_POINTER * self.outputs)()
        run = self.functions.AOTInductorModelContainerRunSingleThreaded
        one, number = ctypes.c_size_t(1), ctypes.c_size_t(self.outputs)
        self._check(
            run(self._handle, inputs, one, outputs, number, None, None)
        )  # the inputs are its own from here on
        found: list[Any] = self._aoti.alloc_tensors_by_stealing_from_void_ptrs([_capsule(o) for o in outputs])
        return found

    def close(self) -> None:
        """Free the weights; the code stays mapped."""
        handle, self._handle = self._handle, _POINTER()
        if handle:
            self._check(self.functions.AOTInductorModelContainerDelete(handle))

    def _number(self, function: str) -> int:
        value = ctypes.c_size_t()
        self._check(self.functions[function](self._handle, ctypes.byref(value)))
        return value.value

    def _check(self, status: int) -> None:
        if status:
            text = ctypes.c_char_p()
            self.functions.AOTInductorGetLastError(ctypes.byref(text))
            raise RuntimeError((text.value or b"the compiled network failed").decode(errors="replace"))


def _pointer(capsule: Any) -> int:
    address: int = _GET_POINTER(capsule, None)
    return address


def _capsule(address: int | None) -> Any:
    return _NEW_CAPSULE(address, None, None)


_GET_POINTER = ctypes.pythonapi.PyCapsule_GetPointer
_GET_POINTER.restype, _GET_POINTER.argtypes = _POINTER, [ctypes.py_object, ctypes.c_char_p]
_NEW_CAPSULE = ctypes.pythonapi.PyCapsule_New
_NEW_CAPSULE.restype, _NEW_CAPSULE.argtypes = ctypes.py_object, [_POINTER, ctypes.c_char_p, _POINTER]
