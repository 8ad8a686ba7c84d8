"""What can be wrong around a sweep, and the essential words of the message: storage, damage, servers, devices."""

from __future__ import annotations

from tests.integration.bad_inputs import Row

BAD_WORLDS = {
    # where sweeps live
    "runs-dir a file": Row(
        words="run --space space.toml --name a --runs-dir file",
        says=("file is a file, so nothing can be written in it; choose another --runs-dir",),
    ),
    "list in a file": Row(words="status --runs-dir file", says=("file is a file, not a folder; name another",)),
    "number in a file": Row(
        words="run --space space.toml --runs-dir file", says=("file is a file, so nothing can be written in it",)
    ),
    "s3 of nothing": Row(
        words="run --space space.toml --runs-dir s3://", says=("s3:// names no bucket or folder", "s3://bucket/folder")
    ),
    "s3 without bucket": Row(
        words="status first --runs-dir s3:///a", says=("s3:///a", "is not a storage that can be opened", "bucket")
    ),
    "storage of no kind": Row(
        words="run --space space.toml --runs-dir ftp://host/runs",
        says=("ftp://host/runs is not a storage that can be opened", "give a path, s3://bucket/folder or gs://..."),
    ),
    # places to write
    "cache a file": Row(
        words="run --space space.toml --name a",
        environment={"SWEEPS_CACHE_DIR": "file"},
        says=("the token cache cannot be kept in file (Not a directory", "set SWEEPS_CACHE_DIR to a folder"),
    ),
    "cache a file in a plan": Row(
        words="plan --space space.toml", environment={"SWEEPS_CACHE_DIR": "file"}, says=("set SWEEPS_CACHE_DIR",)
    ),
    "new over a file": Row(
        words="new space.toml", says=("space.toml exists already and is not overwritten; choose another",)
    ),
    "new inside a file": Row(words="new file/space.toml", says=("file is a file, so nothing can be written in it",)),
    "export to a full folder": Row(
        words="export first --out full", says=("full exists already and is not empty; choose another --out",)
    ),
    "export to a file": Row(words="export first --out file", says=("file is a file", "choose another --out")),
    "export too early": Row(
        words="export first --out x", says=("first has no completed confirm cell yet; nothing can be exported",)
    ),
    "export of no cell": Row(
        words="export first --cell nope --out x", says=("has no cell 'nope'", "`sweeps status first --json` lists them")
    ),
    "exam to a folder": Row(words="exam first --out full", says=("full is a folder; choose a file for --out",)),
    "comparison into a file": Row(
        words="report first first --out file", says=("file is a file", "choose another --out")
    ),
    # damaged sweeps
    "sweep cut short": Row(
        words="status cut --runs-dir damaged",
        says=("cut/sweep.json is damaged: it is not JSON", "restore it from a copy"),
    ),
    "sweep of tomorrow": Row(
        words="resume tomorrow --runs-dir damaged",
        says=("sweep 'tomorrow' has schema 99, this program reads 1; use the program that wrote it",),
    ),
    "sweep that is a list": Row(
        words="verdict list --runs-dir damaged", says=("list/sweep.json is damaged: it is not a JSON object",)
    ),
    "sweep without keys": Row(
        words="resume bare --runs-dir damaged",
        says=("bare/sweep.json is damaged: it has no sweep_id and no created_s",),
    ),
    "page cut short": Row(
        words="resume page --runs-dir damaged", says=("page/plan/0001.json is damaged: it is not JSON", "restore it")
    ),
    "page without cells": Row(
        words="status empty-page --runs-dir damaged",
        says=("plan/0001.json is damaged: it has no extension and no cells",),
    ),
    "outcome cut short": Row(
        words="report outcome --runs-dir damaged", says=("outcome.json is damaged: it is not JSON", "restore it")
    ),
    "damaged among sound ones": Row(
        words="status --runs-dir damaged", code=0, says=("sound", "4 queued", "cut/sweep.json is damaged", "schema 99")
    ),
    # servers and devices
    "tracking of no kind": Row(
        words="sync first",
        environment={"MLFLOW_TRACKING_URI": "foo://me:secret@bar"},
        says=("tracking store foo://bar is of no kind that MLflow knows", "use sqlite:///FILE", "or unset it"),
    ),
    "tracking of no kind in a run": Row(
        words="run --space space.toml --name a",
        environment={"MLFLOW_TRACKING_URI": "foo://bar"},
        says=("tracking store foo://bar is of no kind that MLflow knows",),
    ),
    "no address of a cluster": Row(
        words="run --space space.toml --name a",
        environment={"RAY_ADDRESS": "head"},
        says=("RAY_ADDRESS=head is no address of a Ray cluster", "or unset RAY_ADDRESS to use this machine alone"),
    ),
    "no address of a cluster in a plan": Row(
        words="plan --space space.toml",
        environment={"RAY_ADDRESS": "head"},
        says=("RAY_ADDRESS=head is no address of a Ray cluster",),
    ),
    "tracking in a folder": Row(
        words="ui",
        environment={"MLFLOW_TRACKING_URI": "mlruns"},
        says=("mlruns is a folder of files, which MLflow no longer",),
    ),
    "tracking server down": Row(
        words="sync first",
        code=130,
        environment={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        says=("MLflow at http://127.0.0.1:9 does not answer", "nothing is lost: repeat `sweeps sync first`"),
    ),
    "gpu-check without a GPU": Row(
        words="gpu-check",
        code=4,
        says=("torch sees no CUDA device here; run it on a machine with a GPU", "`sweeps doctor`"),
    ),
    "rm with nobody to answer": Row(
        words="rm first", says=("Delete sweep first", "nobody answered, so nothing was done; --yes answers beforehand")
    ),
}
