"""From a corpus config to the source that reads it: one entry per kind of corpus."""

from __future__ import annotations

from moe.corpus import CorpusConfig, CorpusSource
from moe.corpus_files import files_source
from moe.corpus_hub import hub_source
from moe.embedded import embedded_source


def open_corpus(config: CorpusConfig) -> CorpusSource:
    """The source that ``config`` names.

    Raises:
        CorpusError: a file of the corpus is missing or of an unknown kind. The hub is asked when documents are read.
    """
    if config.kind == "embedded":
        return embedded_source()
    return files_source(config) if config.kind == "files" else hub_source(config)
