"""Message classes of protobuf, made from a table of fields when this is imported.

They are of the syntax `proto2`, where every field knows whether it was given. On the wire that is the same as the
`proto3` of the published clients. Enumerations are whole numbers, as they are on the wire.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from google.protobuf import (  # the last three: their messages are parts of ours
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
)

_KNOWN = {
    "Struct": struct_pb2.DESCRIPTOR,
    "Timestamp": timestamp_pb2.DESCRIPTOR,
    "Duration": duration_pb2.DESCRIPTOR,
}
_FIELD = re.compile(r"(\d+) (\w+)(\*?) (\w+)")
_PACKAGE = "atoll.controller"


def classes(table: str) -> Any:
    """Return an object with a message class for each line of a table.

    Args:
        table: lines such as `Log: 1 str message, 2 i32 source`; a type with `*` is repeated.
    """
    proto: Any = descriptor_pb2.FieldDescriptorProto
    types = {
        "str": proto.TYPE_STRING,
        "bytes": proto.TYPE_BYTES,
        "i32": proto.TYPE_INT32,
        "bool": proto.TYPE_BOOL,
        "f32": proto.TYPE_FLOAT,
    }
    file: Any = descriptor_pb2.FileDescriptorProto(
        name="atoll/controller.proto",
        package=_PACKAGE,
        syntax="proto2",
        dependency=[one.name for one in _KNOWN.values()],
    )
    for line in table.strip().splitlines():
        name, _, listed = line.partition(":")
        message = file.message_type.add(name=name.strip())
        for text in filter(None, map(str.strip, listed.split(","))):
            number, kind, many, field = _FIELD.fullmatch(text).groups()  # type: ignore[union-attr]
            added = message.field.add(
                name=field, number=int(number), label=proto.LABEL_REPEATED if many else proto.LABEL_OPTIONAL
            )
            if kind in types:
                added.type = types[kind]
            else:
                package = "google.protobuf" if kind in _KNOWN else _PACKAGE
                added.type, added.type_name = proto.TYPE_MESSAGE, f".{package}.{kind}"
    pool: Any = descriptor_pool.Default()
    found = pool.AddSerializedFile(file.SerializeToString())
    names = found.message_types_by_name
    return SimpleNamespace(**{name: message_factory.GetMessageClass(names[name]) for name in names})
