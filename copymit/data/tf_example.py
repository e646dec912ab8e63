"""Examples as records in `tf.train.Example`'s format, without tensorflow.

In: an `Example`. Out: the bytes that `tensorflow_datasets` would store for it, and back.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from copymit.data.examples import Example

_NO_LABEL = -1
_Field = descriptor_pb2.FieldDescriptorProto


def encode_example(example: Example) -> bytes:
    """Returns the record of an example, the same bytes for the same example."""
    label = _NO_LABEL if example.label is None else example.label
    record = _Record()
    features = record.features.feature
    features["example_id"].bytes_list.value.append(example.example_id.encode())
    features["image"].bytes_list.value.append(example.image)
    features["captions"].bytes_list.value.extend(c.encode() for c in example.captions)
    features["label"].int64_list.value.append(label)
    return record.SerializeToString(deterministic=True)


def decode_example(data: bytes) -> Example:
    """Returns the example of a record.

    Raises:
      ValueError: if the bytes are not a record that `encode_example` makes.
    """
    try:
        features = _Record.FromString(data).features.feature
        (example_id,) = features["example_id"].bytes_list.value
        (image,) = features["image"].bytes_list.value
        (label,) = features["label"].int64_list.value
        captions = tuple(c.decode() for c in features["captions"].bytes_list.value)
        return Example(
            example_id.decode(), image, captions, None if label < 0 else int(label)
        )
    except (DecodeError, ValueError) as error:
        raise ValueError(
            f"no record of example_id, image, captions and label ({error}): "
            "prepare the data set again"
        ) from error


def _make_record_class() -> Any:
    """Builds the message from its definition, in a pool of its own.

    Source: tensorflow/core/example/{example,feature}.proto.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="copymit/example.proto", package="copymit", syntax="proto3"
    )

    def message(parent: Any, name: str, *fields: tuple[str, int, Any, str]) -> Any:
        nested = isinstance(parent, descriptor_pb2.DescriptorProto)
        added = (parent.nested_type if nested else parent.message_type).add(name=name)
        for number, (field_name, label, kind, type_name) in enumerate(fields, 1):
            field = added.field.add(
                name=field_name, number=number, label=label, type=kind
            )
            if type_name:
                field.type_name = f".copymit.{type_name}"
        return added

    one, many = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED
    nested = _Field.TYPE_MESSAGE
    message(file, "BytesList", ("value", many, _Field.TYPE_BYTES, ""))
    message(file, "FloatList", ("value", many, _Field.TYPE_FLOAT, ""))
    message(file, "Int64List", ("value", many, _Field.TYPE_INT64, ""))
    feature = message(
        file,
        "Feature",
        ("bytes_list", one, nested, "BytesList"),
        ("float_list", one, nested, "FloatList"),
        ("int64_list", one, nested, "Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message(
        file, "Features", ("feature", many, nested, "Features.FeatureEntry")
    )
    entry = message(
        features,
        "FeatureEntry",
        ("key", one, _Field.TYPE_STRING, ""),
        ("value", one, nested, "Feature"),
    )
    entry.options.map_entry = True
    message(file, "Record", ("features", one, nested, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("copymit.Record"))


_Record = _make_record_class()
