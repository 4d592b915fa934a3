"""Reads requests for a collector with OpenTelemetry's own messages and Google's protobuf, and says what is in them.

Each argument is a file with the body of one request. Whatever a collector would drop or refuse is an error: a field that the
protocol does not have, an id of another length, a time that runs backwards. Prints a line of JSON for each span.
"""

import json
import sys

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def known(message):
    """Refuses fields that the protocol does not have, at any depth."""
    assert not len(UnknownFieldSet(message)), f"{message.DESCRIPTOR.full_name} has an unknown field"
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
                known(inner)


def judge(span):
    """Refuses what the comments of trace.proto forbid."""
    assert len(span.trace_id) == 16 and any(span.trace_id), "trace_id"
    assert len(span.span_id) == 8 and any(span.span_id), "span_id"
    assert len(span.parent_span_id) in (0, 8), "parent_span_id"
    assert span.name and span.kind, "a span has a name and a kind"
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano, "its time"
    keys = [attribute.key for attribute in span.attributes]
    assert all(keys) and len(set(keys)) == len(keys), f"attributes {keys}"
    for attribute in span.attributes:
        assert attribute.value.WhichOneof("value"), f"{attribute.key} has no value"


for path in sys.argv[1:]:
    with open(path, "rb") as file:
        body = file.read()
    request = ExportTraceServiceRequest.FromString(body)
    known(request)
    for of in request.resource_spans:
        resource = {attribute.key: attribute.value for attribute in of.resource.attributes}
        assert resource["service.name"].string_value, "service.name is required of every resource"
        for scope in of.scope_spans:
            assert scope.scope.name, "a scope has a name"
            for span in scope.spans:
                judge(span)
                print(json.dumps([span.trace_id.hex(), span.span_id.hex(), span.name]))
