"""Ask every port of a machine for a job, its data and its state, without any token; prints the answers as JSON.

``python port_prober.py HOST PORT ...``, run on another machine.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException

import grpc

TIMEOUT_S = 10.0
PATHS = ("/", "/metrics", "/logs", "/api/v0/logs", "/api/jobs/", "/api/version", "/nodes?view=summary")
HEALTH = ("/api/healthz", "/api/local_raylet_healthz")
JOB_APIS = ("/api/job_agent/jobs/", "/api/jobs/")
METHODS = (
    "grpc.health.v1.Health/Check",
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "ray.rpc.InternalKVGcsService/InternalKVKeys",
    "ray.rpc.NodeManagerService/GetNodeStats",
    "ray.rpc.NodeManagerService/GetSystemConfig",
    "ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "ray.rpc.CoreWorkerService/PushTask",
    "ray.rpc.ReporterService/GetTraceback",
    "ray.rpc.ReporterService/HealthCheck",
    "ray.rpc.ObjectManagerService/Pull",
    "ray.rpc.LogService/ListLogs",
)


def http_answers(host: str, port: int) -> Iterator[tuple[str, str]]:
    """What was asked over HTTP, and the status of each answer."""
    job = json.dumps({"entrypoint": "true"}).encode()
    requests = [("GET", path, None) for path in (*PATHS, *HEALTH)] + [("POST", path, job) for path in JOB_APIS]
    for method, path, body in requests:
        request = urllib.request.Request(
            f"http://{host}:{port}{path}", data=body, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                yield f"{method} {path}", str(answer.status)
        except urllib.error.HTTPError as error:
            yield f"{method} {path}", str(error.code)
        except (OSError, HTTPException) as error:
            yield f"{method} {path}", type(error).__name__  # no HTTP here
            return


def grpc_answers(host: str, port: int) -> Iterator[tuple[str, str]]:
    """What was asked over gRPC with an empty message, and the status of each answer."""
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in METHODS:
            call = channel.unary_unary(f"/{method}", request_serializer=bytes, response_deserializer=bytes)
            try:
                call(b"", timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                status = error.code().name
            else:
                status = "OK"
            yield method, status
            if status in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                return  # no gRPC here


def main() -> None:
    """Ask, and print."""
    host, ports = sys.argv[1], [int(word) for word in sys.argv[2:]]
    answers = [
        {"port": port, "asked": asked, "status": status}
        for port in ports
        for answers in (http_answers, grpc_answers)
        for asked, status in answers(host, port)
    ]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
