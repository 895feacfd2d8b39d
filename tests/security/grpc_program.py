"""A client of gRPC in a process of its own: it makes calls that a file of JSON names, and prints a status for each."""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc

from atoll.controller.messages import messages
from atoll.controller.service import NAME, STREAMS

with grpc.insecure_channel(sys.argv[1], options=[("grpc.max_metadata_size", 1 << 20)]) as channel:
    for method, kind, fields, metadata in json.load(sys.stdin):
        make = channel.unary_stream if method in STREAMS else channel.unary_unary
        stub: Any = make(
            f"/{NAME}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=bytes,
        )
        try:
            request = getattr(messages, kind)()
            for name, value in fields.items():
                if isinstance(value, dict):
                    for inner, text in value.items():
                        setattr(getattr(request, name), inner, text)
                else:
                    setattr(request, name, value)
            found = stub(request, metadata=[tuple(one) for one in metadata], timeout=60)
            answer = b"".join(found) if method in STREAMS else found
            print(json.dumps(["OK", answer.decode("latin-1")]), flush=True)
        except grpc.RpcError as error:
            print(json.dumps([error.code().name, error.details()]), flush=True)
