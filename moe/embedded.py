"""The corpus that comes with the installation: SymPy's own sources, which torch depends on.

Nothing is downloaded and every machine has the same bytes: ``sympy==1.14.0``, all ``*.py`` outside ``tests`` and
``benchmarks`` of at least 14,000 bytes, sorted by path: 307 documents, 13.6 MB.

Why this split. Documents are held out by subpackage, because files of one subpackage share imports, idioms and copied
docstrings. Measured with a BPE of 2048 over all files, runs of 64 tokens and more cross subpackages in few places:
`functions` and `ntheory` (1139 distinct runs, up to 200 tokens), among `core`, `logic`, `sets`, `functions`, `series`
and `external` (13 to 177 a pair), `core` with `polys` and `tensor`, `concrete` with `integrals`. All of these train.
The held-out subpackages share next to nothing with the rest (the audit measures it again for every vocabulary) and are
chosen for number and variety: test has 52 documents of six subpackages (at least 50 are wanted for rows of single
documents and for a bootstrap over documents), validation 26 of five others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from moe.corpus import CorpusSource, Document, SplitName
from moe.errors import CorpusError

SYMPY_VERSION = "1.14.0"
SHA256 = "ab617e06f69390dd19829b07f6a4d090a487f2a56f31a93573c4f6fa43e5863c"
TOTAL_BYTES = 13_629_042
MIN_FILE_BYTES = 14_000
LEFT_OUT_FOLDERS = frozenset({"tests", "benchmarks"})
TEST_SUBPACKAGES = frozenset({"calculus", "combinatorics", "geometry", "plotting", "simplify", "stats"})
VALIDATION_SUBPACKAGES = frozenset({"crypto", "discrete", "matrices", "utilities", "vector"})


def embedded_source() -> CorpusSource:
    """SymPy's sources as a corpus of 307 documents."""
    return CorpusSource(
        identity={"kind": "embedded", "sympy": SYMPY_VERSION, "sha256": SHA256, "split": 1},
        description=f"embedded (sources of SymPy {SYMPY_VERSION})",
        documents=_documents,
        total_bytes=TOTAL_BYTES,
        bounded=True,
    )


def _documents() -> Iterator[Document]:
    import sympy

    package = Path(sympy.__file__).parent
    texts = read_checked(package, version=sympy.__version__)
    for path, text in texts:
        subpackage = path.relative_to(package).parts[0]
        name = path.relative_to(package.parent).as_posix()
        yield Document(name=name, text=text, split=split_of(subpackage), group=subpackage)


def split_of(subpackage: str) -> SplitName:
    """The split in which all documents of ``subpackage`` stand."""
    if subpackage in TEST_SUBPACKAGES:
        return "test"
    return "validation" if subpackage in VALIDATION_SUBPACKAGES else "train"


def read_checked(package: Path, *, version: str) -> list[tuple[Path, str]]:
    """Paths and texts of the corpus under ``package``, in order of path.

    Raises:
        CorpusError: the files are not the ones whose hash this module states.
    """
    candidates = (path for path in package.rglob("*.py") if not LEFT_OUT_FOLDERS & set(path.relative_to(package).parts))
    paths = sorted(
        (path for path in candidates if path.stat().st_size >= MIN_FILE_BYTES),
        key=lambda path: path.relative_to(package.parent).as_posix(),
    )
    digest = hashlib.sha256()
    texts: list[tuple[Path, str]] = []
    for path in paths:
        content = path.read_bytes()
        digest.update(content)
        texts.append((path, content.decode()))
    if digest.hexdigest() != SHA256:
        raise CorpusError(
            f"the embedded corpus is not the one this version knows: sympy {version} gives {len(paths)} documents with "
            f"sha256 {digest.hexdigest()[:12]}..., expected sympy {SYMPY_VERSION} with {SHA256[:12]}...; "
            f"reinstall it with `pip install --force-reinstall sympy=={SYMPY_VERSION}`"
        )
    return texts
